//! Numbers, durations and commands as text for people: the same in progress, model cards and the
//! binary's tables.

use std::time::Duration;

/// A count with a comma between groups of three digits: `1,234,567`.
///
/// ```
/// assert_eq!(epiphyte_train::display::count(1_234_567), "1,234,567");
/// ```
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A duration as hours, minutes and whole seconds, with days before them if there are any:
/// `01:02:03`, `2d 01:02:03`.
///
/// ```
/// use std::time::Duration;
/// use epiphyte_train::display::duration;
///
/// assert_eq!(duration(Duration::from_secs(3723)), "01:02:03");
/// assert_eq!(duration(Duration::from_secs(2 * 86_400 + 3723)), "2d 01:02:03");
/// ```
#[must_use]
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let clock = format!("{hours:02}:{:02}:{:02}", seconds / 60 % 60, seconds % 60);
    match days {
        0 => clock,
        days => format!("{days}d {clock}"),
    }
}

/// A curve in `rows` lines of text, for a terminal: each column is a value, or the mean of
/// neighbors where there are more than 60, with the highest and the lowest at the left. Empty for
/// fewer than two values.
///
/// ```
/// let curve = epiphyte_train::display::curve(&[3.0, 2.0, 1.5, 1.0], 2);
/// assert_eq!(curve, "3.000 █▁\n1.000 ██▅▁");
/// ```
#[must_use]
pub fn curve(values: &[f64], rows: usize) -> String {
    const COLUMNS: usize = 60;
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let values: Vec<f64> = values.iter().copied().filter(|it| it.is_finite()).collect();
    if values.len() < 2 || rows == 0 {
        return String::new();
    }
    let columns = values.len().min(COLUMNS);
    let means = (0..columns).map(|column| {
        let own = &values[column * values.len() / columns..(column + 1) * values.len() / columns];
        own.iter().sum::<f64>() / own.len() as f64
    });
    let means: Vec<f64> = means.collect();
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (steps, range) = ((rows * 8 - 1) as f64, (high - low).max(f64::MIN_POSITIVE));
    let height = |mean: &f64| 1 + ((mean - low) / range * steps).round() as usize;
    let labels = [high, low].map(|value| format!("{value:.3}"));
    let width = labels.iter().map(String::len).max().unwrap_or(0);
    let lines = (0..rows).map(|row| {
        let below = (rows - 1 - row) * 8;
        let block = |mean: &f64| BLOCKS[height(mean).saturating_sub(below).min(8)];
        let line: String = means.iter().map(block).collect();
        let label = match row {
            0 => &labels[0],
            row if row == rows - 1 => &labels[1],
            _ => "",
        };
        format!("{label:>width$} {}", line.trim_end())
    });
    lines.collect::<Vec<String>>().join("\n")
}

/// A command (a program and its arguments) quoted for a POSIX shell.
///
/// ```
/// use epiphyte_train::display::shell_command;
///
/// let command = ["epiphyte", "--prompt", "it's two words"].map(str::to_owned);
/// assert_eq!(shell_command(&command), r"epiphyte --prompt 'it'\''s two words'");
/// ```
#[must_use]
pub fn shell_command(command: &[String]) -> String {
    let quoted = command.iter().map(|word| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./,:=@%+".contains(&byte);
        if !word.is_empty() && word.bytes().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped_from_the_right() {
        for (number, expected) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(count(number), expected);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_shell_splits_the_command_into_its_words() {
        let arguments = [
            "",
            "plain",
            "a b",
            "it's",
            "$HOME `id` \"x\" \\",
            "*",
            "-é|&;<>\n\t!",
            "~",
            "a=b,c",
        ];
        let arguments = arguments.map(str::to_owned);
        let script = format!("printf '%s\\0' {}", shell_command(&arguments));
        let output = std::process::Command::new("sh")
            .arg("-c")
            .arg(script)
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            printed.split_terminator('\0').collect::<Vec<_>>(),
            arguments
        );
        assert_eq!(shell_command(&arguments[1..2]), "plain");
    }
}
