//! Text of a suite in Markdown: names stay names, and bring no HTML, links or columns of their own.

/// A name or a reason in running text or in a cell of a table.
pub(crate) fn text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => escaped += "&lt;",
            '\n' | '\r' => escaped.push(' '),
            '\\' | '`' | '*' | '[' | ']' | '|' => escaped.extend(['\\', character]),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A name as code.
pub(crate) fn code(name: &str) -> String {
    let name = name.replace(['\n', '\r'], " ");
    match name.contains('`') {
        // As many backquotes as the name has none of in a row.
        true => {
            let runs = name.split(|character| character != '`').map(str::len);
            let fence = "`".repeat(runs.max().unwrap_or(0) + 1);
            format!("{fence} {name} {fence}")
        }
        false => format!("`{name}`"),
    }
}

/// What a suite says of itself, which is Markdown, without HTML.
pub(crate) fn prose(text: &str) -> String {
    text.trim().replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::{code, prose, text};

    #[test]
    fn names_are_no_markdown() {
        assert_eq!(text("a|b\n<img>"), "a\\|b &lt;img>");
        assert_eq!(text("[x](y) *z*"), "\\[x\\](y) \\*z\\*");
        assert_eq!(text("lora, rank 2"), "lora, rank 2");
        assert_eq!(code("lora"), "`lora`");
        assert_eq!(code("a``b\n`c`"), "``` a``b `c` ```");
        assert_eq!(prose(" run `it` <b>now</b>\n"), "run `it` &lt;b>now&lt;/b>");
    }
}
