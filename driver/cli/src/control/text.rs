//! Words for times and for entries of the queue.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use virtfold_service::control::{EntryOrigin, EntryState, EntryStatus, LastFailure};

use crate::report::printable;

/// A time in this host's local time, with its offset.
pub(crate) fn time(at: i64) -> String {
    let format =
        |time: Timestamp| time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %:z").to_string();
    Timestamp::from_second(at).map_or_else(|_| at.to_string(), format)
}

/// A length of time, in its two largest units.
pub(super) fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// A time and how far it is from now.
pub(super) fn time_and_span(at: i64, now: i64) -> String {
    let far = if at > now { format!("in {}", span(at - now)) } else { format!("{} ago", span(now - at)) };
    format!("{} ({far})", time(at))
}

/// A state in a word.
pub(super) fn state(state: EntryState) -> &'static str {
    match state {
        EntryState::Waiting => "waiting",
        EntryState::Running => "running",
        EntryState::Ending => "ending",
        EntryState::Succeeded => "succeeded",
        EntryState::Failed => "failed",
        EntryState::Cancelled => "cancelled",
    }
}

/// What else is to be said of an entry; may be empty.
pub(super) fn notes(entry: &EntryStatus, now: i64) -> String {
    let mut notes = Vec::new();
    match &entry.trigger {
        EntryOrigin::Schedule => {}
        EntryOrigin::CatchUp => notes.push("missed, caught up".to_owned()),
        EntryOrigin::Request => notes.push("asked for".to_owned()),
        EntryOrigin::Event(event) => {
            notes.push(format!("because of the guest's event '{}'", printable(event)))
        }
    }
    if let (Some(at), EntryState::Waiting) = (entry.not_before.filter(|at| *at > now), entry.state) {
        notes.push(format!("not before {}", time(at)));
    }
    if let (Some(reason), EntryState::Waiting) = (&entry.waits_for, entry.state) {
        notes.push(format!("waits: {}", printable(reason)));
    }
    if let Some(failure) = &entry.failure
        && entry.state != EntryState::Succeeded
    {
        let attempt = entry.attempts;
        notes.push(match entry.state {
            EntryState::Running | EntryState::Ending => {
                format!("attempt {attempt}, the one before failed: {}", sentence(failure))
            }
            _ => format!("attempt {attempt} failed: {}", sentence(failure)),
        });
    }
    notes.join("; ")
}

/// A failure's sentence, fit for a terminal.
pub(super) fn sentence(failure: &LastFailure) -> String {
    printable(&failure.sentence)
}

/// Rows as columns: each as wide as its widest cell, the last one free. No cell begins a line of its own.
pub(crate) fn columns(indent: &str, rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| {
            let pad = width.saturating_sub(cell.chars().count());
            format!("{cell}{}", " ".repeat(pad))
        });
        let line = format!("{indent}{}", cells.collect::<Vec<_>>().join("  "));
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units() {
        let words = [-5, 0, 59, 60, 3599, 3600, 86_399, 86_400, 90_000_000].map(span);
        let expected =
            ["0 s", "0 s", "59 s", "1 min", "59 min", "1 h 0 min", "23 h 59 min", "1 d 0 h", "1041 d 16 h"];
        assert_eq!(words, expected);
    }

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        assert_eq!(columns("  ", &[row(["ä", "b"]), row(["cde", ""])]), "  ä    b\n  cde\n");
        let text = columns("", &[row(["a\u{202e}\nb", "c"]), row(["d", "e"])]);
        assert_eq!(text, "a\\u{202e}\\nb  c\nd             e\n");
    }
}
