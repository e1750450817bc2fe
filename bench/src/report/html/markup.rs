//! HTML and SVG, written so that no text from outside can become markup.
//!
//! Names of elements and attributes are constants of this program; everything else goes through [`Markup::text`] or an
//! attribute's value, and both escape.

use std::fmt::{Display, Write as _};

/// A document as it grows.
#[derive(Debug, Default)]
pub(super) struct Markup(String);

/// An attribute and its value.
pub(super) type Attribute<'a> = (&'static str, &'a dyn Display);

impl Markup {
    pub(super) fn into_string(self) -> String {
        self.0
    }

    /// An element with whatever `inner` puts into it.
    pub(super) fn element(&mut self, name: &'static str, attributes: &[Attribute], inner: impl FnOnce(&mut Self)) {
        self.open(name, attributes);
        self.0.push('>');
        inner(self);
        let _ = write!(self.0, "</{name}>"); // A String takes everything.
    }

    /// An element with only text in it.
    pub(super) fn leaf(&mut self, name: &'static str, attributes: &[Attribute], text: &str) {
        self.element(name, attributes, |m| m.text(text));
    }

    /// An element that has no inside: `meta`, and every shape of SVG.
    pub(super) fn void(&mut self, name: &'static str, attributes: &[Attribute]) {
        self.open(name, attributes);
        self.0.push_str("/>");
    }

    /// Text.
    pub(super) fn text(&mut self, text: &str) {
        escape(&mut self.0, text);
    }

    /// A line break between elements, so that the page's source can be read and compared.
    pub(super) fn newline(&mut self) {
        self.0.push('\n');
    }

    /// Markup that is part of this program.
    pub(super) fn constant(&mut self, markup: &'static str) {
        self.0.push_str(markup);
    }

    fn open(&mut self, name: &'static str, attributes: &[Attribute]) {
        let _ = write!(self.0, "<{name}");
        for (attribute, value) in attributes {
            let _ = write!(self.0, " {attribute}=\"");
            escape(&mut self.0, &value.to_string());
            self.0.push('"');
        }
    }
}

/// Appends `text` with what HTML gives a meaning replaced, and what it does not allow.
fn escape(markup: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => markup.push_str("&amp;"),
            '<' => markup.push_str("&lt;"),
            '>' => markup.push_str("&gt;"),
            '"' => markup.push_str("&quot;"),
            '\'' => markup.push_str("&#39;"),
            '\n' | '\t' => markup.push(c),
            c if c.is_control() => markup.push(char::REPLACEMENT_CHARACTER),
            c => markup.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn elements_nest_and_text_is_escaped() {
        let mut m = Markup::default();
        m.element("p", &[("title", &"\"'&<>")], |m| {
            m.text("a < b\u{0}");
            m.void("br", &[]);
            m.leaf("b", &[("id", &7)], "</b>");
        });
        assert_eq!(
            m.into_string(),
            "<p title=\"&quot;&#39;&amp;&lt;&gt;\">a &lt; b\u{fffd}<br/><b id=\"7\">&lt;/b&gt;</b></p>"
        );
    }

    proptest! {
        #[test]
        fn no_text_becomes_markup(text in "\\PC*|[<>&\"'a-z/= ]*") {
            let mut m = Markup::default();
            m.leaf("p", &[("title", &text)], &text);
            let html = m.into_string();
            let escaped = html.strip_prefix("<p title=\"").unwrap().strip_suffix("</p>").unwrap();
            let (value, inner) = escaped.split_once("\">").unwrap();
            for part in [value, inner] {
                prop_assert!(!part.contains(['<', '>', '"', '\'']));
                let back = part.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#39;", "'");
                prop_assert_eq!(back.replace("&amp;", "&"), text.as_str());
            }
        }
    }
}
