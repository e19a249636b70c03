//! `epiphyte completions` and `epiphyte man`: what a shell and a reader of manuals need, made from
//! the same definitions as `--help`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use epiphyte::train::check_output_directory;

use crate::failure::UsageError;
use crate::output;

pub(crate) const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  epiphyte completions bash > ~/.local/share/bash-completion/completions/epiphyte
  epiphyte completions zsh > ~/.zfunc/_epiphyte
  epiphyte completions fish > ~/.config/fish/completions/epiphyte.fish";

pub(crate) const MAN_EXAMPLES: &str = "\
Examples:
  epiphyte man | man -l -
  epiphyte man train | man -l -
  epiphyte man prompts words | man -l -
  epiphyte man --output ~/.local/share/man/man1";

#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// The shell: bash, elvish, fish, powershell or zsh
    #[arg(value_name = "SHELL", hide_possible_values = true)]
    shell: Shell,
}

#[derive(Args, Debug)]
pub(crate) struct Manual {
    /// The command whose page is written to standard output, such as train [default: the program]
    #[arg(value_name = "COMMAND", conflicts_with = "output")]
    command: Vec<String>,
    /// Directory for a page of each command
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(crate) fn completions(arguments: &Completions) -> Result<ExitCode> {
    let mut script = Vec::new();
    let mut command = crate::arguments::Arguments::command();
    clap_complete::generate(arguments.shell, &mut command, "epiphyte", &mut script);
    output::stream(&script)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn manual(arguments: &Manual) -> Result<ExitCode> {
    let mut command = crate::arguments::Arguments::command();
    command.build();
    let Some(directory) = &arguments.output else {
        output::stream(&page(found(&command, &arguments.command)?)?)?;
        return Ok(ExitCode::SUCCESS);
    };
    check_output_directory(directory)?;
    let mut pages = Vec::new();
    add_pages(&command, "epiphyte", &mut pages)?;
    for (name, text) in &pages {
        check_page(&directory.join(name), text)?;
    }
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create `{}`", directory.display()))?;
    for (name, text) in pages {
        epiphyte::io::write(&directory.join(name), &text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The command below `command` that these words name.
fn found<'a>(mut command: &'a Command, words: &[String]) -> Result<&'a Command> {
    for word in words {
        let subcommands = command.get_subcommands().map(Command::get_name);
        let subcommands: Vec<&str> = subcommands.collect();
        command = command.find_subcommand(word).ok_or_else(|| {
            let known = subcommands.join(", ");
            let problem = match known.is_empty() {
                true => format!("`{}` has no commands of its own", command.get_name()),
                false => format!("there is no command `{word}`, but {known}"),
            };
            UsageError::Other(problem)
        })?;
    }
    Ok(command)
}

/// Adds the pages of a command, which is called `name`, and of those below it.
fn add_pages(command: &Command, name: &str, pages: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    pages.push((format!("{name}.1"), page(command)?));
    let others = command.get_subcommands();
    for other in others.filter(|it| it.get_name() != "help") {
        add_pages(other, &format!("{name}-{}", other.get_name()), pages)?;
    }
    Ok(())
}

/// Checks that a page replaces nothing but a page.
fn check_page(path: &Path, text: &[u8]) -> Result<()> {
    let problem = match fs::read(path) {
        Ok(present) if present == text || is_page(&present) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound && !path.is_symlink() => return Ok(()),
        Ok(_) => "is not a page of epiphyte's manual".to_owned(),
        Err(error) => format!("cannot be read: {error}"),
    };
    let path = path.display();
    let problem = format!("`{path}` {problem}: rename it, or choose another --output");
    Err(UsageError::Other(problem).into())
}

/// Whether a file is a page of ours, of any version.
fn is_page(text: &[u8]) -> bool {
    let title = b".TH epiphyte";
    text.windows(title.len()).take(400).any(|it| it == title)
}

/// A page in roff.
fn page(command: &Command) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    Ok(page)
}
