//! Where verbs print. Whoever reads standard output may have read enough (`virtfold list | head`): then the
//! verb ends as other tools do, without a word and with the code of SIGPIPE. The signal itself stays ignored:
//! a run with a guest to bring back must not die of a line. An archive on standard output is no print
//! (`medium::pipe`): a reader that leaves is a failure there.
//!
//! Text for people goes through [`out`], [`line()`] and [`say`], which escape what a terminal would obey and
//! what would turn a line around (`printable`), but for line feeds: where a name could bring its own, the
//! verb escapes it first ([`super::report::printable`]). JSON goes through [`raw`].

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use virtfold_base::printable::PrintableWriter;

/// Whether a line found no reader.
static GONE: AtomicBool = AtomicBool::new(false);

/// Standard output, which notes that its reader is gone.
pub(crate) struct Stdout(io::StdoutLock<'static>);

/// Standard output for what a verb says to people.
pub(crate) fn out() -> PrintableWriter<Stdout> {
    PrintableWriter::new(raw())
}

/// Standard output for what a verb says to programs.
pub(crate) fn raw() -> Stdout {
    Stdout(io::stdout().lock())
}

fn noted<T>(done: io::Result<T>) -> io::Result<T> {
    if done.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        GONE.store(true, Ordering::Relaxed);
    }
    done
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        noted(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        noted(self.0.flush())
    }
}

/// Prints a line of a result.
///
/// # Errors
/// It can't be written.
pub(crate) fn line(text: &str) -> Result<()> {
    writeln!(out(), "{text}").context("cannot write the result")
}

/// Says something beside the result, on standard error. Where nobody reads that there is nobody to be told.
pub(crate) fn say(text: &str) {
    if let Err(error) = writeln!(PrintableWriter::new(io::stderr()), "{text}") {
        tracing::debug!(%error, "a message could not be printed");
    }
}

/// Whether a verb ended because nobody reads what it prints.
pub(crate) fn reader_is_gone(error: &anyhow::Error) -> bool {
    let broken = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    GONE.load(Ordering::Relaxed) && error.chain().any(broken)
}
