//! What a verb prints while it works: a bar on a terminal, a plain line now and then in a log, JSON lines for
//! machines.
//!
//! JSON events ([`virtfold_backup::events`]) are each on one line of standard output; of standard error where
//! standard output carries an archive. Plain messages go to standard error, results to standard output.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, Sender, bounded};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use virtfold_backup::Progress;
use virtfold_backup::events::{ErrorEvent, Event};
use virtfold_backup::restore::LostRange;
use virtfold_base::printable::PrintableWriter;
use virtfold_base::units::Human;

use super::output;

/// How often each form shows progress.
const BAR_EVERY: Duration = Duration::from_millis(100);
const JSON_EVERY: Duration = Duration::from_secs(1);
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Who reads the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputFormat {
    /// A person, or a log.
    Text,
    /// A program.
    Json,
}

impl OutputFormat {
    /// From the flag `--json`.
    pub(crate) fn from_flag(args: &JsonFlag) -> Self {
        if args.json { Self::Json } else { Self::Text }
    }
}

/// The flag that every verb with output for programs has.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct JsonFlag {
    /// Print JSON for programs instead of text for people
    #[arg(long)]
    json: bool,
}

/// Whether standard output is free, or carries an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StdoutUse {
    /// Results go there.
    Free,
    /// Results go to standard error.
    Archive,
}

/// Prints one JSON document on one line, or text through `text`.
pub(crate) fn result(style: OutputFormat, out: StdoutUse, value: &impl Serialize, text: &str) -> Result<()> {
    let written = match style {
        OutputFormat::Json => {
            let line = event_line(&Event::Summary(value)).context("cannot write the result as JSON")?;
            match out {
                StdoutUse::Free => writeln!(output::raw(), "{line}"),
                StdoutUse::Archive => writeln!(std::io::stderr(), "{line}"),
            }
        }
        OutputFormat::Text => {
            let text = text.trim_end();
            match out {
                StdoutUse::Free => writeln!(output::out(), "{text}"),
                StdoutUse::Archive => writeln!(PrintableWriter::new(std::io::stderr()), "{text}"),
            }
        }
    };
    written.context("cannot write the result")
}

/// An event as its line, with its keys in their order.
fn event_line(event: &Event<impl Serialize>) -> serde_json::Result<String> {
    Ok(serde_json::to_value(event)?.to_string())
}

/// Prints why the verb failed, for programs.
pub(crate) fn error(out: StdoutUse, event: ErrorEvent) {
    match event_line(&Event::<()>::Error(event)) {
        Ok(line) => print_progress(&line, out),
        Err(error) => tracing::debug!(%error, "the error could not be shown as JSON"),
    }
}

/// Prints the ranges that are lost, one a line.
pub(crate) fn damage(style: OutputFormat, ranges: &[LostRange]) -> Result<()> {
    for lost in ranges {
        match style {
            OutputFormat::Json => {
                let line = event_line(&Event::<()>::Damage(lost.clone()));
                writeln!(output::raw(), "{}", line.context("cannot write the result as JSON")?)
            }
            OutputFormat::Text => writeln!(output::out(), "lost: {lost}"),
        }
        .context("cannot write the result")?;
    }
    Ok(())
}

/// Text that may hold bytes of an archive or an image's header, with line feeds and all else that a terminal
/// obeys made visible.
pub(crate) fn printable(text: &str) -> String {
    virtfold_base::printable::printable(text).into_owned()
}

/// Shows a [`Progress`] until it is dropped.
pub(crate) struct ProgressPrinter {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ProgressPrinter {
    /// Starts to show `progress`.
    pub(crate) fn start(style: OutputFormat, out: StdoutUse, progress: &Arc<Progress>) -> Result<Self> {
        let (stop, stopped) = bounded(0);
        let progress = Arc::clone(progress);
        let show = move || match style {
            OutputFormat::Json => json_lines(&progress, out, &stopped),
            OutputFormat::Text if std::io::stderr().is_terminal() => bar(&progress, &stopped),
            OutputFormat::Text => plain_lines(&progress, &stopped),
        };
        let thread = std::thread::Builder::new().name("progress".to_owned()).spawn(show);
        Ok(Self { stop: Some(stop), thread: Some(thread.context("cannot start a thread")?) })
    }
}

impl Drop for ProgressPrinter {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the progress display failed");
        }
    }
}

/// Calls `show` at every interval until the ticker stops.
fn every(interval: Duration, stopped: &Receiver<()>, mut show: impl FnMut()) {
    let timed_out = crossbeam_channel::RecvTimeoutError::Timeout;
    while stopped.recv_timeout(interval) == Err(timed_out) {
        show();
    }
}

fn bar(progress: &Progress, stopped: &Receiver<()>) {
    let template = "{msg:10} [{bar:30}] {binary_bytes:>10} of {binary_total_bytes:10} {binary_bytes_per_sec:>12}  {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style.progress_chars("=> "));
    let mut phase = "";
    every(BAR_EVERY, stopped, || {
        let now = progress.snapshot();
        if now.phase != phase {
            phase = now.phase;
            bar.reset();
            bar.set_message(phase);
        }
        bar.set_length(now.total);
        bar.set_position(now.done.min(now.total));
    });
    bar.finish_and_clear();
}

fn plain_lines(progress: &Progress, stopped: &Receiver<()>) {
    every(PLAIN_EVERY, stopped, || {
        let now = progress.snapshot();
        if now.total == 0 {
            print_progress(&format!("{}: {} s", now.phase, now.elapsed.as_secs()), StdoutUse::Archive);
            return;
        }
        let (rate, left) = now.pace();
        let left = left.map_or(String::new(), |left| format!(", {} s left", left.as_secs()));
        let line =
            format!("{}: {} of {}, {}/s{left}", now.phase, Human(now.done), Human(now.total), Human(rate));
        print_progress(&line, StdoutUse::Archive);
    });
}

fn json_lines(progress: &Progress, out: StdoutUse, stopped: &Receiver<()>) {
    every(JSON_EVERY, stopped, || match event_line(&Event::<()>::Progress((&progress.snapshot()).into())) {
        Ok(line) => print_progress(&line, out),
        Err(error) => tracing::debug!(%error, "progress could not be shown"),
    });
}

/// Progress is worth no failure: a reader that has gone is told nothing.
fn print_progress(line: &str, out: StdoutUse) {
    let written = match out {
        StdoutUse::Free => writeln!(std::io::stdout(), "{line}"),
        StdoutUse::Archive => writeln!(std::io::stderr(), "{line}"),
    };
    if let Err(error) = written {
        tracing::debug!(%error, "progress could not be shown");
    }
}
