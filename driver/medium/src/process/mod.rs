//! A medium in a process of its own, which can be abandoned.
//!
//! A thread that writes to a medium that hangs (a file server that is away, a file system that is frozen, a
//! FUSE that is stopped) stands in the kernel. No flag reaches it and no signal ends it, SIGKILL included,
//! and it keeps its process, with all locks and descriptors of that. So the process that has a guest's disks
//! frozen never touches a medium: it starts this program again for each place ([`serve`]), and speaks to it
//! over a socket pair ([`open`], behind which a [`super::Medium`] is as any). It alone opens, writes, renames
//! and removes there. Every wait for it ends with the run's flag.
//!
//! | driver | process | |
//! |---|---|---|
//! | a [`MediumRequest`] | `ready`, `at`, `gone`, `known`, `follows` | the first message: what is to be opened, looked at, read back or taken away |
//! | keep | `kept` | from here on marks come, whenever there are some: `mark`, `left` |
//! | data | | it is not answered; `failed` comes where it fails |
//! | settle, go on, finish | `settled`, `resumed`, `finished` | or `failed` |
//! | the socket is shut for writing | | what is not finished is taken away, and the process ends |
//! | the socket is closed | | the driver is dead: the process ends at once, and what is there stays to be gone on with |
//!
//! A list and a removal are answered by `item`s, one for each archive, and `known` behind the last one.
//!
//! Behind `follows` the bytes of a file that was left come by standard output; whoever has the digests and
//! the key holds them against these.
//!
//! The driver's messages are a byte, a length and so many bytes; the answers are lines of JSON. Behind a
//! `failed` data is left unread up to `go on`.
//!
//! **The end.** A medium that is dropped, or told to end while it is waited for, is left behind
//! ([`TerminatingProcesses`]): it gets SIGTERM, and time to take away what is there, while the guest is on
//! its way back. Then it gets SIGKILL; one that stands in the kernel is abandoned. It has nothing that
//! anybody waits for: the locks of domains, records and images are closed on exec, its standard error is a
//! pipe that the driver reads. When its medium answers again it dies of the SIGKILL, in the middle of what it
//! did; what it has written by then another process would have written the same.
//!
//! Imports: `error`, `archive` (its traits for bytes), the medium's own words.

mod client;
mod protocol;
mod server;
mod termination;

pub use self::client::{ProcessDestination, open};
pub use self::protocol::{Items, MediumReply, MediumRequest, ProbeReply, StoredArchive};
pub use self::server::serve;
pub use self::termination::{AbandonedProcess, TerminatingProcesses};
