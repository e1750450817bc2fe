//! Completion scripts and man pages, from the same definition as the command line itself.

use clap::{Command, ValueEnum};
use clap_complete::Shell;

use crate::error::{Context, Result};

/// What can be generated from a command line's definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Generated {
    /// A completion script for bash.
    Bash,
    /// A completion script for zsh.
    Zsh,
    /// A completion script for fish.
    Fish,
    /// The man page, in roff.
    Man,
}

/// Prints what is asked for to standard output.
///
/// # Errors
/// When standard output cannot be written.
pub fn generate(mut command: Command, what: Generated) -> Result<()> {
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    match what {
        Generated::Bash => clap_complete::generate(Shell::Bash, &mut command, name, &mut text),
        Generated::Zsh => clap_complete::generate(Shell::Zsh, &mut command, name, &mut text),
        Generated::Fish => clap_complete::generate(Shell::Fish, &mut command, name, &mut text),
        Generated::Man => {
            clap_mangen::Man::new(command).render(&mut text).context(|| "cannot write the man page")?;
        }
    }
    super::print(&String::from_utf8_lossy(&text))
}
