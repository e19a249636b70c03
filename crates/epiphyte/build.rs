//! Tells the binary what it was built from: the commit, if it is known, the compiler, the target
//! and the profile.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let version = match commit() {
        Some(commit) => format!("{version} ({commit})"),
        None => version,
    };
    println!("cargo::rustc-env=EPIPHYTE_VERSION={version}");
    let compiler = env::var("RUSTC").ok();
    let compiler = compiler.and_then(|rustc| output(&rustc, &["--version"]));
    tell("EPIPHYTE_RUSTC", compiler);
    tell("EPIPHYTE_TARGET", env::var("TARGET").ok());
    tell("EPIPHYTE_PROFILE", env::var("PROFILE").ok());
}

fn tell(variable: &str, value: Option<String>) {
    let value = value.unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env={variable}={value}");
}

/// The commit: of a published package as cargo recorded it, of a checkout as Git says.
fn commit() -> Option<String> {
    let package = env::var_os("CARGO_MANIFEST_DIR")?;
    let package = Path::new(&package);
    if let Ok(recorded) = fs::read_to_string(package.join(".cargo_vcs_info.json")) {
        let (_, hash) = recorded.split_once("\"sha1\": \"")?;
        return hash.get(..12).map(str::to_owned);
    }
    // A repository around a copy without Git would say its own commit.
    let root = package.parent()?.parent()?;
    if !root.join(".git").exists() {
        return None;
    }
    // Every commit and checkout appends to this file.
    let log = output("git", &["rev-parse", "--git-path", "logs/HEAD"])?;
    println!("cargo::rerun-if-changed={log}");
    output("git", &["rev-parse", "--short=12", "HEAD"])
}

/// The first line that a command prints; none if it fails.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next()?.trim();
    (output.status.success() && !line.is_empty()).then(|| line.to_owned())
}
