//! Models by their names, from a hub on this machine: one that is right, and hostile ones.

mod cache;
mod hostile;
mod interrupted;
mod server;
