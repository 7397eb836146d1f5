//! The YAML configuration of virtfold: `/etc/virtfold/config.yaml` and, beside it, `conf.d/*.yaml`.
//!
//! The keys are defined once, as the structs of [`keys`]; their doc comments are the documentation. From them
//! come the parser (serde), the JSON Schema ([`schema`], schemars) and the reference ([`reference()`],
//! which README.md of this crate is, and [`man_page`]). A new key is a new field, nothing else.
//!
//! How a configuration is read ([`load()`]):
//! 1. each file is read, bounded, and refused when somebody else may write it (`load.rs`);
//! 2. its YAML becomes a tree that knows the place of every key (`yaml_tree.rs`);
//! 3. the trees become one; a key that two files set is an error that names both (`yaml_tree.rs`);
//! 4. serde reads the structs from the tree; what it refuses is told with file, line, column, the key's path
//!    and, where a known word is near, a suggestion (`deserialize.rs`, `suggest.rs`);
//! 5. keys are held against each other: a job's media have to be there, and so on (`check.rs`);
//! 6. what they name and what decides as much as they do, commands and recipients, is held against the rule
//!    of 1 (`load.rs`).
//!
//! [`Config::advice`] tells what is right and has no effect (`ineffective.rs`).
//!
//! [`Config::job`] gives a job with all that counts for it, [`Schedule`] says when it is due, and
//! [`Medium::environment`] reads the credentials of an object store.
//!
//! [`parse`] does 2 to 5 for a text in memory: the entry point for fuzzers.
//!
//! Imports: `base` (`safe_path`).

#[macro_use]
mod values;

mod check;
mod deserialize;
mod environment;
mod error;
mod examples;
mod ineffective;
mod key_places;
pub mod keys;
mod load;
mod position;
mod reference;
mod schedule;
mod show;
mod suggest;
mod yaml_node;
mod yaml_tree;

pub use environment::Environment;
pub use error::ConfigError;
pub use ineffective::{IneffectiveSetting, NamedGuest};
pub use keys::{Config, Defaults, Job, Medium, ResolvedJob, Service, Settings, Trust};
pub use load::{MAX_FILE, MAX_FILES, load, load_settings, parse};
pub use position::Position;
pub use reference::{man_page, reference, schema};
pub use schedule::Schedule;
pub use show::{Shown, ValueOrigin};
pub use values::{
    Attempts, BackupKind, BlockSize, ByteRate, ByteSize, ChainLength, CommandCondition, CommandLine,
    Compression, Concurrency, Count, DetectZeroes, FilePath, Glob, Interval, Layout, List, LoopbackAddress,
    MediumAddress, MediumKind, Name, NonEmptyText, PauseDuration, QuiesceMode, RecipientList, Trigger,
    Version, Window, Workers, parse_size,
};
