//! A page of HTML: everything in one file, nothing from elsewhere.

use std::fmt::Write as _;

use epiphyte_train::display;
use epiphyte_train::report::account;

/// Text as HTML.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            other => escaped.push(other),
        }
    }
    escaped
}

/// Text as HTML, with what stands between backquotes as code.
pub(super) fn prose(text: &str) -> String {
    let parts = text.split('`').enumerate().map(|(at, part)| match at % 2 {
        0 => escape(part),
        _ => format!("<code>{}</code>", escape(part)),
    });
    parts.collect()
}

/// A page with a title, a list of its sections, and these.
pub(super) fn page(title: &str, lead: &str, sections: &[Section]) -> String {
    let mut links = String::new();
    let mut body = String::new();
    for section in sections {
        let (id, name) = (section.id(), escape(&section.title));
        let _ = writeln!(links, "<li><a href=\"#{id}\">{name}</a></li>");
        let _ = writeln!(
            body,
            "<section aria-labelledby=\"{id}\"><h2 id=\"{id}\">{name}</h2>\n{}</section>",
            section.body
        );
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<link rel=\"icon\" href=\"data:,\">\n<style>\n{style}</style>\n</head>\n\
         <body>\n<header>\n<h1>{title}</h1>\n{lead}<nav aria-label=\"Sections\"><ul>\n{links}</ul></nav>\n\
         </header>\n<main>\n{body}</main>\n<footer><p class=\"quiet\">Made by epiphyte {version}.</p></footer>\n\
         </body>\n</html>\n",
        title = escape(title),
        style = include_str!("style.css"),
        version = env!("CARGO_PKG_VERSION"),
    )
}

/// A part of a page with a heading.
#[derive(Debug)]
pub(super) struct Section {
    title: String,
    body: String,
}

impl Section {
    pub(super) fn new(title: impl Into<String>, body: String) -> Self {
        Self {
            title: title.into(),
            body,
        }
    }

    /// The heading's address on the page.
    fn id(&self) -> String {
        let plain = |character: char| match character.is_ascii_alphanumeric() {
            true => character.to_ascii_lowercase(),
            false => '-',
        };
        self.title.chars().map(plain).collect()
    }
}

/// A table.
#[derive(Debug, Default)]
pub(super) struct Table {
    caption: String,
    header: Vec<(String, bool)>,
    rows: Vec<Vec<Cell>>,
}

/// A cell's text, and how it is shown.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    class: &'static str,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, class: "" }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl Cell {
    /// A cell of a class of the style sheet.
    pub(super) fn of_class(text: impl Into<String>, class: &'static str) -> Self {
        Self {
            text: text.into(),
            class,
        }
    }
}

impl Table {
    /// A table with these columns, numbers if said so.
    pub(super) fn new(caption: impl Into<String>, header: &[(&str, bool)]) -> Self {
        Self {
            caption: caption.into(),
            header: header
                .iter()
                .map(|&(name, is_number)| (name.to_owned(), is_number))
                .collect(),
            rows: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<Cell>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    pub(super) fn html(&self) -> String {
        let caption = escape(&self.caption);
        let mut html = format!(
            "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\"><table>\n\
             <caption>{caption}</caption>\n<thead><tr>"
        );
        for (name, is_number) in &self.header {
            let class = if *is_number { " class=\"n\"" } else { "" };
            let _ = write!(html, "<th scope=\"col\"{class}>{}</th>", escape(name));
        }
        html += "</tr></thead>\n<tbody>\n";
        for row in &self.rows {
            html += "<tr>";
            for (at, cell) in row.iter().enumerate() {
                let is_number = self.header.get(at).is_some_and(|(_, is_number)| *is_number);
                let text = escape(&cell.text);
                let class = match (is_number, cell.class) {
                    (true, "") => " class=\"n\"".to_owned(),
                    (_, "") => String::new(),
                    (true, class) => format!(" class=\"n {class}\""),
                    (false, class) => format!(" class=\"{class}\""),
                };
                let _ = match at {
                    0 => write!(html, "<th scope=\"row\"{class}>{text}</th>"),
                    _ => write!(html, "<td{class}>{text}</td>"),
                };
            }
            html += "</tr>\n";
        }
        html + "</tbody></table></div>\n"
    }

    /// The table, closed until it is asked for.
    pub(super) fn details(&self, summary: &str) -> String {
        format!(
            "<details><summary>{}</summary>\n{}</details>\n",
            escape(summary),
            self.html()
        )
    }
}

/// A count such as `1,234`.
pub(super) fn count(number: usize) -> String {
    display::count(number as u64)
}

/// A number with three significant digits and a unit: `1.23 M`.
pub(super) fn short(number: f64) -> String {
    for (size, unit) in [(1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")] {
        if number.abs() >= size {
            return format!("{}{unit}", three_digits(number / size));
        }
    }
    three_digits(number)
}

/// Bytes with three significant digits: `1.23 MB`, of 10⁶ bytes.
pub(crate) fn bytes(number: u64) -> String {
    let text = short(number as f64);
    match text.contains(' ') {
        true => format!("{text}B"),
        false => format!("{text} B"),
    }
}

fn three_digits(number: f64) -> String {
    let decimals = match number.abs() {
        0.0 => 0,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        size => (2 - size.log10().floor() as i32).clamp(2, 12) as usize,
    };
    let text = format!("{number:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// A rank, or `more` where it is not told exactly.
pub(crate) fn rank(rank: usize, more: &str) -> String {
    match rank < account::LARGEST_RANK {
        true => rank.to_string(),
        false => more.to_owned(),
    }
}

/// A number of a curve: four digits after the point, or three digits of a number that these would
/// hide.
pub(super) fn figure(number: f64) -> String {
    match number != 0.0 && number.abs() < 0.01 {
        true => three_digits(number),
        false => format!("{number:.4}"),
    }
}

/// A share as a percentage with three significant digits.
pub(super) fn percent(part: usize, whole: usize) -> String {
    format!(
        "{} %",
        three_digits(100.0 * part as f64 / whole.max(1) as f64)
    )
}

#[cfg(test)]
mod tests {
    use super::{bytes, escape, figure, percent, prose, rank, short};

    #[test]
    fn numbers_have_three_digits() {
        for (number, text) in [
            (0.0, "0"),
            (0.000_123_4, "0.000123"),
            (0.5, "0.5"),
            (9.876, "9.88"),
            (999.0, "999"),
            (12_345.0, "12.3 k"),
            (1e6, "1 M"),
        ] {
            assert_eq!(short(number), text);
        }
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(1_500_000), "1.5 MB");
        assert_eq!(percent(1, 3), "33.3 %");
    }

    #[test]
    fn small_figures_are_not_zero() {
        for (number, text) in [(0.0, "0.0000"), (3e-5, "0.00003"), (-2.5e-4, "-0.00025")] {
            assert_eq!(figure(number), text);
        }
        assert_eq!(figure(0.85126), "0.8513");
    }

    #[test]
    fn ranks_from_64_on_are_not_told_exactly() {
        assert_eq!(rank(63, "64 or more"), "63");
        assert_eq!(rank(64, "64 or more"), "64 or more");
    }

    #[test]
    fn text_stays_text() {
        assert_eq!(prose("run `a < b` now"), "run <code>a &lt; b</code> now");
        assert_eq!(
            escape("<a href=\"x\">&"),
            "&lt;a href=&quot;x&quot;&gt;&amp;"
        );
    }
}
