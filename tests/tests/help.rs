//! What every program says of itself: its commands, options and defaults, as a user reads them.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

fn help(program: &str, command: &[String]) -> String {
    let mut asked = tests::program(program);
    // The width of the lines, and the values of options that the environment may set, are not the program's own.
    for (name, _) in std::env::vars_os() {
        if name == "COLUMNS" || name.to_string_lossy().starts_with("PROVISION_") {
            asked.env_remove(name);
        }
    }
    let out = asked.args(command).arg("--help").output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// The commands that a help text lists.
fn commands(help: &str) -> Vec<&str> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let name = |line: &'_ str| line.starts_with("  ") && !line.starts_with("   ");
    list.filter(|line| name(line))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect()
}

/// All that a program says, command by command.
fn everything(program: &str) -> String {
    let mut pages = Vec::new();
    let mut waiting: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let page = help(program, &path);
        waiting.extend(commands(&page).into_iter().rev().map(|name| [&path[..], &[name.to_owned()]].concat()));
        pages.push(page);
    }
    pages.join(&format!("\n{}\n\n", "-".repeat(100)))
}

#[test]
fn vdisk() {
    insta::assert_snapshot!(everything("vdisk"));
}

#[test]
fn bench() {
    insta::assert_snapshot!(everything("bench"));
}

#[test]
fn pfs() {
    insta::assert_snapshot!(everything("pfs"));
}

#[test]
fn provision() {
    insta::assert_snapshot!(everything("provision"));
}

#[test]
fn pfsd() {
    insta::assert_snapshot!(everything("pfsd"));
}
