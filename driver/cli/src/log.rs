//! The log: lines on standard error, each of them one line whatever is in it.
//!
//! What others wrote (names of guests, messages of libvirt, lines of commands that the service ran) comes
//! into the log as values of fields; the formatter of fields escapes all of them (`printable`). Levels, times
//! and the names of fields are this program's own.
//!
//! Imports: `printable`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{FormatFields, debug_fn};
use virtfold_base::printable::printable;

/// Begins to log what `VIRTFOLD_LOG` says, else `usual`.
pub(crate) fn start(usual: &str) {
    let filter = EnvFilter::try_from_env("VIRTFOLD_LOG").unwrap_or_else(|_| EnvFilter::new(usual));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // The journal keeps text, not colours.
        .with_ansi(std::io::stderr().is_terminal())
        // What can't be logged, because whoever read it is gone, must not end a run that has a guest to bring
        // back to its disks.
        .log_internal_errors(false)
        .fmt_fields(fields())
        .init();
}

/// The message as it is, other fields with their names; all escaped.
fn fields() -> impl for<'w> FormatFields<'w> + Send + Sync + 'static {
    let form = debug_fn(|writer, field, value| {
        let value = format!("{value:?}");
        match field.name() {
            "message" => write!(writer, "{}", printable(&value)),
            name => write!(writer, "{name}={}", printable(&value)),
        }
    });
    form.delimited(" ")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_of_the_log_is_one_whatever_is_in_it() {
        let lines = Lines::default();
        let to = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || to.clone())
            .with_ansi(false)
            .fmt_fields(fields())
            .finish();
        let hostile = "web\u{1b}]0;x\u{7}\u{202e}\n2026-01-01 ERROR forged";
        let error = std::io::Error::other(hostile);
        tracing::subscriber::with_default(subscriber, || {
            let _span = tracing::warn_span!("run", domain = %hostile).entered();
            tracing::warn!(domain = %hostile, text = hostile, %error, ?error, "guest '{hostile}' is in no job");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(text.trim_end().chars().all(virtfold_base::printable::is_printable), "{text:?}");
        assert!(
            text.contains("guest 'web\\u{1b}]0;x\\u{7}\\u{202e}\\n2026-01-01 ERROR forged' is in"),
            "{text}"
        );
        assert!(text.contains(" domain=web\\u{1b}") && text.contains(" error=web\\u{1b}"), "{text}");
    }
}
