//! Chat templates, and the limits within which they run.

mod day;
mod limits;
mod template;

pub use day::Day;
pub use limits::TemplateLimit;
pub use template::ChatTemplate;
