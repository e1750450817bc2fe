//! Connection strings as libpq takes them, with what the client library leaves out: password files.

use std::path::{Path, PathBuf};

use blockdev::{Context, Error, Result};
use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// The parameters in `text`: `key=value` pairs or a URI. Without a password in it, the password is taken from $PGPASSWORD
/// or the password file: `passfile=` in `text`, $PGPASSFILE or ~/.pgpass.
///
/// # Errors
/// When it is no connection string, or a password file that it names cannot be read.
pub(super) fn parse(text: &str) -> Result<Config> {
    let (rest, named) = without_passfile(text);
    let mut config: Config =
        rest.parse().map_err(|source| Error::invalid("it is no connection string").with_source(source))?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(Error::invalid("it names no host").with_hint("host=127.0.0.1 port=5432 user=... dbname=..."));
    }
    if config.get_password().is_some() {
        return Ok(config);
    }
    if let Some(password) = std::env::var_os("PGPASSWORD") {
        config.password(password.into_encoded_bytes());
        return Ok(config);
    }
    let usual = || {
        let variable = std::env::var_os("PGPASSFILE").map(PathBuf::from);
        variable.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pgpass")))
    };
    let content = match &named {
        Some(path) => {
            std::fs::read_to_string(path).context(|| format!("cannot read the password file {}", path.display()))?
        }
        None => usual().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default(),
    };
    if let Some(password) = password_in(&content, &config) {
        config.password(password);
    }
    Ok(config)
}

/// `text` without its `passfile`, and that.
fn without_passfile(text: &str) -> (String, Option<PathBuf>) {
    if text.contains("://") {
        return (text.to_owned(), None);
    }
    let (mut rest, mut passfile) = (Vec::new(), None);
    for pair in pairs(text) {
        match pair.split_once('=') {
            Some((key, value)) if key.trim() == "passfile" => passfile = Some(PathBuf::from(unquoted(value.trim()))),
            _ => rest.push(pair),
        }
    }
    (rest.join(" "), passfile)
}

/// Splits `key=value key='a value'` where libpq does.
fn pairs(text: &str) -> Vec<&str> {
    let (mut pairs, mut start) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\'' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => {
                pairs.push(&text[start..at]);
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    pairs.push(&text[start..]);
    pairs.retain(|pair| !pair.is_empty());
    pairs
}

/// A value without its quotes and backslashes.
fn unquoted(value: &str) -> String {
    let inner = value.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).unwrap_or(value);
    unescaped(inner)
}

/// `text` without the backslashes that keep the character after them.
fn unescaped(text: &str) -> String {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        plain.extend(if c == '\\' { characters.next() } else { Some(c) });
    }
    plain
}

/// The password in a file of lines `host:port:database:user:password`, of which each of the first four may be `*`.
fn password_in(content: &str, config: &Config) -> Option<String> {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        // As libpq: whatever the socket, it is this machine.
        Some(Host::Unix(path)) if path == Path::new("/tmp") => "localhost".to_owned(),
        Some(Host::Unix(path)) => path.to_string_lossy().into_owned(),
        None => config.get_hostaddrs().first()?.to_string(),
    };
    let port = config.get_ports().first().unwrap_or(&5432).to_string();
    let user = config.get_user().unwrap_or_default();
    let wanted = [host.as_str(), &port, config.get_dbname().unwrap_or(user), user];
    content.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = fields(line);
        let (password, rest) = fields.split_last()?;
        let matches = rest.len() == wanted.len()
            && rest.iter().zip(wanted).all(|(field, wanted)| *field == "*" || unescaped(field) == wanted);
        matches.then(|| unescaped(password))
    })
}

/// The fields of a line, apart at colons that no backslash keeps together.
fn fields(line: &str) -> Vec<&str> {
    let (mut fields, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ':' => {
                fields.push(&line[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    fields.push(&line[start..]);
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_provision_prints_can_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pg pass");
        std::fs::write(&file, "# ours\n*:*:*:replicator:no\n*:5501:*:postgres:a\\:b\n").unwrap();
        let text =
            format!("host=127.0.0.1 port=5501 user=postgres dbname=postgres passfile='{}'", file.to_str().unwrap());
        let config = parse(&text).unwrap();
        assert_eq!(config.get_password(), Some(b"a:b".as_slice()));
        assert_eq!((config.get_ports(), config.get_user()), ([5501].as_slice(), Some("postgres")));
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        let error = parse("host=a passfile=/nonexistent").unwrap_err();
        assert_eq!(error.to_string(), "cannot read the password file /nonexistent");
        assert_eq!(parse("hots=a").unwrap_err().to_string(), "it is no connection string");
        assert_eq!(parse("user=a").unwrap_err().to_string(), "it names no host");
    }

    #[test]
    fn quotes_keep_values_together() {
        assert_eq!(pairs(r"a=1  b='x y' c='it\'s' d=\ e"), ["a=1", "b='x y'", r"c='it\'s'", r"d=\ e"]);
        assert_eq!(unquoted(r"'it\'s'"), "it's");
        let (rest, passfile) = without_passfile("host=a passfile='/x y' user=b");
        assert_eq!((rest.as_str(), passfile), ("host=a user=b", Some(PathBuf::from("/x y"))));
        let uri = "postgres://u:p@h/d";
        assert_eq!(without_passfile(uri), (uri.to_owned(), None));
    }

    #[test]
    fn the_first_line_that_matches_is_taken() {
        let config: Config = "host=h port=1 user=u dbname=d".parse().unwrap();
        let find = |content: &str| password_in(content, &config);
        assert_eq!(find("h:1:d:u:one\n*:*:*:*:two").as_deref(), Some("one"));
        assert_eq!(find("h:2:d:u:one\n*:*:*:*:two").as_deref(), Some("two"));
        assert_eq!(find("h:1:d:v:one\nnonsense\n"), None);
    }
}
