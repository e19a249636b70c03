//! Reading whole files, which have to be what their place asks for.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// The most bytes of a file that a user names as a setting or a text.
const LONGEST_TEXT: u64 = 1 << 28;

/// The bytes of a file in the directory of a model, an adapter or a run.
///
/// # Errors
/// If it cannot be read, or is no regular file: opening a pipe would wait for somebody who writes,
/// and a device may have no end.
///
/// ```
/// let directory = tempfile::tempdir()?;
/// let error = epiphyte_io::read_regular(directory.path()).unwrap_err();
/// assert_eq!(error.to_string(), "it is no regular file");
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    check_regular(path)?;
    fs::read(path)
}

/// Checks that a path leads to a regular file.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] if there is none, also where the path goes through a file as if it
/// were a directory: a model may be a file, which has no others in it. If it is something else.
pub fn check_regular(path: &Path) -> io::Result<()> {
    let found = fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotADirectory => io::ErrorKind::NotFound.into(),
        _ => error,
    })?;
    match found.is_file() {
        true => Ok(()),
        false => Err(io::Error::other("it is no regular file")),
    }
}

/// The text of a file that a user names, which may be a pipe such as a shell's `<(command)`.
///
/// # Errors
/// If it cannot be read, is no UTF-8, or does not end within 256 MiB.
pub fn read_text(path: &Path) -> io::Result<String> {
    text_of(File::open(path)?)
}

fn text_of(file: impl Read) -> io::Result<String> {
    let mut text = String::new();
    file.take(LONGEST_TEXT + 1).read_to_string(&mut text)?;
    match text.len() as u64 > LONGEST_TEXT {
        true => Err(io::Error::other("it is longer than 256 MiB")),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_without_an_end_is_refused() {
        let error = text_of(io::repeat(b'a')).unwrap_err().to_string();
        assert!(error.contains("256 MiB"), "{error}");
        assert_eq!(text_of(&b"short"[..]).unwrap(), "short");
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_refused_without_waiting_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("config.json");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let error = read_regular(&pipe).unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
    }
}
