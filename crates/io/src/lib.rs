//! Files that appear whole or not at all, and the formats safetensors and GGUF.
//!
//! Every crate of the project that writes a file writes it with [`write`](write()),
//! [`write_atomically`], [`write_output`], [`PendingFile`], [`write_directory`] or the functions of
//! [`safetensors_file`] and [`gguf`]; what only the process itself reads lies in a [`ScratchFile`].

mod atomic_file;
mod directory;
mod error;
mod file_kind;
mod forget;
pub mod gguf;
mod paths;
mod read;
pub mod safetensors_file;
mod scratch;
mod sha256;

pub use atomic_file::{
    OutputKind, PendingFile, TEMPORARY, output_kind, write, write_atomically, write_output,
};
pub use directory::{clean_up, clean_up_next_to, remove_directory, write_directory};
pub use error::{FileError, GgufError, GgufProblem, HeaderProblem, SafetensorsError};
pub use file_kind::mistaken_file;
pub use forget::forget;
pub use paths::{is_in_directory, is_same_file, parent, refuse_link, resolve};
pub use read::{check_regular, read_regular, read_text};
pub use scratch::{ScratchFile, ScratchMap};
pub use sha256::{Sha256Hasher, sha256, sha256_of_file};
