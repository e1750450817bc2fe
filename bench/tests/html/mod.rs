//! Reads the pages that reports are, strictly: a page that is not well-formed fails the test.

/// An opening tag or a text.
enum Token<'a> {
    Open { name: &'a str, attributes: Vec<(&'a str, &'a str)>, void: bool },
    Close(&'a str),
    Text(&'a str),
}

/// The pieces of a page, whose tags nest.
fn tokens(page: &str) -> Vec<Token<'_>> {
    let mut rest = page.strip_prefix("<!doctype html>\n<!-- onedisk.bench.report -->\n").expect("a report");
    let mut tokens = Vec::new();
    let mut open: Vec<&str> = Vec::new();
    while let Some(start) = rest.find('<') {
        if !rest[..start].is_empty() {
            tokens.push(Token::Text(&rest[..start]));
        }
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "tags nest");
            tokens.push(Token::Close(name));
            continue;
        }
        let (tag, void) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "<{name}> is a tag");
        tokens.push(Token::Open { name, attributes: self::attributes(attributes), void });
        if name == "style" {
            let end = rest.find("</style>").expect("the style sheet ends");
            rest = &rest[end..];
        }
        if !void {
            open.push(name);
        }
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "every tag is closed");
    tokens
}

fn attributes(mut text: &str) -> Vec<(&str, &str)> {
    let mut attributes = Vec::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"").expect("an attribute has a value in quotes");
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{name} is an attribute");
        let (value, rest) = rest.split_once('"').expect("a value ends");
        attributes.push((name, value));
        text = rest.strip_prefix(' ').unwrap_or(rest);
    }
    attributes
}

/// Every tag with the names of its attributes: what a page is made of, whatever its texts.
pub fn elements(page: &str) -> Vec<String> {
    tokens(page)
        .into_iter()
        .filter_map(|token| match token {
            Token::Open { name, attributes, .. } => {
                Some(attributes.iter().fold(name.to_owned(), |text, (name, _)| format!("{text} {name}")))
            }
            Token::Close(name) => Some(format!("/{name}")),
            Token::Text(_) => None,
        })
        .collect()
}

/// What a reader sees: headings, texts, and of pictures what they say, without their coordinates.
pub fn outline(page: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut stack: Vec<(&str, &str)> = Vec::new();
    for token in tokens(page) {
        match token {
            Token::Open { name, attributes, void } => {
                let class = attributes.iter().find(|(name, _)| *name == "class").map_or("", |(_, class)| class);
                if !void {
                    stack.push((name, class));
                }
                match name {
                    "svg" => {
                        lines.push(format!("svg {}", attributes.iter().find(|(n, _)| *n == "aria-label").unwrap().1))
                    }
                    "tr" => lines.push(format!("tr {class}").trim_end().to_owned()),
                    _ => {}
                }
            }
            Token::Close(_) => {
                stack.pop();
            }
            Token::Text(text) if text.trim().is_empty() => {}
            Token::Text(text) => {
                let (name, class) = stack.last().copied().unwrap_or_default();
                match name {
                    "th" | "td" | "small" | "sup" if stack.iter().any(|(name, _)| *name == "tr") => {
                        let row = lines.last_mut().expect("a cell is in a row");
                        row.push_str(if name == "small" || name == "sup" { " " } else { " | " });
                        row.push_str(text);
                    }
                    _ => lines.push(format!("{name} {class} {text}").replace("  ", " ")),
                }
            }
        }
    }
    lines.join("\n").replace("&#39;", "'")
}
