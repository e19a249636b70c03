//! Base models and adapters by their names on the hub, with a bar while they are downloaded.

use std::path::{Path, PathBuf};

use epiphyte::hub::{Event, Hub, HubError, LogLines};
use indicatif::{ProgressBar, ProgressStyle};

use crate::output;

/// The directory or GGUF file of a base model, given by its path or by its name.
///
/// # Errors
/// Those of [`Hub::resolve`].
pub(crate) fn resolve(model: &Path) -> Result<PathBuf, HubError> {
    let mut download = Download::default();
    Hub::from_env().resolve_with(model, &mut |event| download.event(event))
}

/// The directory of an adapter, given as that directory or by its name.
///
/// # Errors
/// Those of [`Hub::resolve`].
pub(crate) fn resolve_adapter(adapter: &Path) -> Result<PathBuf, HubError> {
    let mut download = Download::default();
    Hub::from_env().resolve_adapter_with(adapter, &mut |event| download.event(event))
}

/// Shows a download: a bar on a terminal, else log lines.
#[derive(Default)]
struct Download {
    bar: Option<ProgressBar>,
    lines: LogLines,
}

impl Download {
    fn event(&mut self, event: &Event<'_>) {
        match (event, &self.bar) {
            (Event::Started { name, bytes, .. }, _) if shows_bar() => {
                let style = ProgressStyle::with_template(
                    "{msg}  {bar:24} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left",
                );
                let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
                let bar = ProgressBar::new(*bytes).with_style(style);
                self.bar = Some(bar.with_message((*name).to_owned()));
            }
            (Event::Progress { done, .. }, Some(bar)) => bar.set_position(*done),
            (Event::Finished { .. }, Some(bar)) => bar.abandon(),
            (Event::Waiting { .. } | Event::Retrying { .. }, Some(bar)) => {
                bar.println(event.to_string());
            }
            _ => self.lines.event(event),
        }
    }
}

/// Whether the log level shows downloads and standard error is a terminal.
fn shows_bar() -> bool {
    output::is_terminal() && tracing::enabled!(target: "epiphyte_hub", tracing::Level::INFO)
}
