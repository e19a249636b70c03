//! Where paths lead: the same file has many names.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::FileError;

/// How many links in a row are followed; as many as Linux follows.
const MOST_LINKS: usize = 40;

/// The absolute path of a file or directory with every link and `..` resolved, also if it does not
/// exist yet.
///
/// # Errors
/// If a directory on the way cannot be read, or links lead in a circle.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// std::fs::create_dir(dir.join("a"))?;
/// let new = epiphyte_io::resolve(&dir.join("a/../new/file"))?;
/// assert_eq!(new, dir.canonicalize()?.join("new/file"));
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    follow(path, MOST_LINKS)
}

fn follow(path: &Path, links: usize) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    let mut components = path.components();
    let last = components.next_back();
    let parent = components.as_path();
    match last {
        None => Path::new(".").canonicalize(),
        Some(Component::ParentDir) => {
            let mut parent = follow(parent, links)?;
            parent.pop();
            Ok(parent)
        }
        Some(Component::Normal(name)) => match path.read_link() {
            Ok(target) if links > 0 => follow(&parent.join(target), links - 1),
            Ok(_) => Err(io::ErrorKind::InvalidInput.into()),
            Err(_) => Ok(follow(parent, links)?.join(name)),
        },
        Some(_) => follow(parent, links),
    }
}

/// The directory that a path is in, by its spelling: `.` for a bare name.
#[must_use]
pub fn parent(path: &Path) -> &Path {
    let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Whether two paths lead to one file or directory: by another spelling, by links, or, on Unix, by
/// hard links.
#[must_use]
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    match (identity(one), identity(other)) {
        (Some(one), Some(other)) => one == other,
        _ => resolve(one)
            .ok()
            .is_some_and(|one| Some(one) == resolve(other).ok()),
    }
}

/// Whether `path` leads into `directory`, or is the directory itself.
#[must_use]
pub fn is_in_directory(path: &Path, directory: &Path) -> bool {
    resolve(path).is_ok_and(|path| {
        path.ancestors()
            .any(|ancestor| is_same_file(ancestor, directory))
    })
}

/// Refuses a link where a file or directory of ours is to be written in place, so that nothing
/// elsewhere is changed through it.
///
/// # Errors
/// [`FileError`], naming `path`, if it is a symbolic link.
pub fn refuse_link(path: &Path) -> Result<(), FileError> {
    if !path.is_symlink() {
        return Ok(());
    }
    let problem = "it is a link, and what it leads to must not be changed: remove the link";
    let error = io::Error::new(io::ErrorKind::InvalidInput, problem);
    Err(FileError::new("write", path, error))
}

/// What the file system knows a file by; none if there is no such file.
#[cfg(unix)]
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// Without hard links, a file is known by its path.
#[cfg(not(unix))]
fn identity(path: &Path) -> Option<PathBuf> {
    fs::canonicalize(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_path_are_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("a")).unwrap();
        fs::write(at("a/file"), b"").unwrap();
        assert!(is_same_file(&at("a/file"), &at("a/../a/./file")));
        assert!(!is_same_file(&at("a/file"), &at("a")));
        assert!(is_in_directory(&at("a/file"), &at("a")));
        assert!(is_in_directory(&at("a"), &at("a/.")));
        assert!(is_in_directory(&at("a/new/file"), &at("a")));
        assert!(!is_in_directory(&at("b/file"), &at("a")));
        // Neither exists.
        assert!(is_same_file(&at("a/../b"), &at("./b")));
        assert!(!is_same_file(&at("b"), &at("c")));
    }

    #[cfg(unix)]
    #[test]
    fn links_lead_to_the_same_file() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), b"").unwrap();
        fs::hard_link(at("file"), at("hard")).unwrap();
        symlink("file", at("soft")).unwrap();
        symlink("absent", at("dangling")).unwrap();
        symlink("circle", at("circle")).unwrap();
        for link in ["hard", "soft"] {
            assert!(is_same_file(&at("file"), &at(link)), "{link}");
        }
        assert!(is_same_file(&at("dangling"), &at("absent")));
        assert_eq!(
            resolve(&at("dangling")).unwrap(),
            dir.path().canonicalize().unwrap().join("absent")
        );
        assert!(resolve(&at("circle")).is_err());
        assert!(refuse_link(&at("file")).is_ok() && refuse_link(&at("absent")).is_ok());
        for link in ["soft", "dangling", "circle"] {
            let error = refuse_link(&at(link)).unwrap_err();
            assert!(error.to_string().contains(link), "{error}");
        }
    }
}
