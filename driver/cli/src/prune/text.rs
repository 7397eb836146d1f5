//! The report for people.

use virtfold_backup::retention::{GroupReport, PruneAction, PruneEntry, PruneReport};
use virtfold_base::units::Human;

use super::{Report, Tape, TapeVolume};
use crate::report::printable;
use crate::show;

/// All of it.
pub(super) fn report(report: &Report) -> String {
    let mut text = String::new();
    for place in &report.places {
        text += &self::place(place, report);
    }
    for tape in &report.tapes {
        text += &self::tape(tape);
    }
    text
}

fn place(place: &PruneReport, report: &Report) -> String {
    let mut text = String::new();
    for group in &place.subjects {
        text += &self::group(group, place.place.as_str(), report);
    }
    if place.subjects.is_empty() {
        text += &format!("{}: no archives\n", printable(&place.place));
    }
    for entry in &place.unknown {
        text += &format!(
            "left alone: {} ({})\n",
            printable(&entry.archive),
            printable(&entry.reasons.join("; "))
        );
    }
    for (count, whose) in [(place.other_hosts, "of other hosts"), (place.not_asked, "of others of this host")]
    {
        if count > 0 {
            text += &format!("left alone: {} {whose}\n", archives(count));
        }
    }
    text
}

fn group(group: &GroupReport, place: &str, report: &Report) -> String {
    let dry_run = report.dry_run;
    let of = |action: PruneAction| group.archives.iter().filter(move |entry| entry.action == action);
    let gone = if dry_run { PruneAction::Remove } else { PruneAction::Removed };
    let bytes = of(gone).map(|entry| entry.bytes).fold(0, u64::saturating_add);
    let verb = if dry_run { "would be removed" } else { "removed" };
    let count = of(gone).count();
    let mut text = format!(
        "{}: {}, {count} {verb} ({}), {} kept\n",
        printable(place),
        subject(group),
        Human(bytes),
        group.archives.len() - count
    );
    if let Some(why) = &group.kept_whole {
        text += &format!("  {}\n", printable(why));
    }
    if group.unrecorded > 0 {
        text += &format!(
            "  {} not in the catalog: they count for nothing and stay; 'virtfold list --remember {}' records them\n",
            archives(group.unrecorded),
            printable(place)
        );
    }
    if group.unverified > 0 {
        text += &format!(
            "  {} never verified, though an older one was: they push nothing out until 'virtfold verify {} --due 30d' has read them\n",
            archives(group.unverified),
            printable(place)
        );
    }
    let told: Vec<&PruneEntry> =
        group.archives.iter().filter(|entry| dry_run || entry.action != PruneAction::Keep).collect();
    let width = told.iter().map(|entry| printable(&entry.file).chars().count()).max().unwrap_or(0).max(7);
    if !told.is_empty() {
        text += &format!("  {:<26} {:>10} {:<7} {:<width$}  why\n", "created", "size", "", "archive");
    }
    for entry in told {
        let action = match (entry.action, dry_run) {
            (PruneAction::Keep, _) => "keep",
            (PruneAction::Remove, true) => "remove",
            (PruneAction::Remove, false) => "failed",
            (PruneAction::Removed, _) => "removed",
        };
        let why = printable(&entry.reasons.join(", "));
        let created = entry.created.as_deref().map_or_else(|| "-".to_owned(), show::local);
        let line = format!(
            "  {created:<26} {:>10} {action:<7} {:<width$}  {why}",
            Human(entry.bytes).to_string(),
            printable(&entry.file)
        );
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// What a group is of, for people.
fn subject(group: &GroupReport) -> String {
    match group.paths.is_empty() {
        true => printable(&group.name),
        false => printable(&format!("{} ({})", group.name, group.paths.join(", "))),
    }
}

fn tape(tape: &Tape) -> String {
    let expired = tape.volumes.iter().filter(|volume| volume.expired).count();
    let mut text =
        format!("{}: {} volumes known, {expired} expired\n", printable(&tape.place), tape.volumes.len());
    for volume in &tape.volumes {
        text += &format!(
            "  {} (pool {}): {}\n",
            printable(&volume.label),
            printable(&volume.pool),
            words(volume)
        );
    }
    text
}

fn words(volume: &TapeVolume) -> String {
    let take =
        if volume.free { "'virtfold tape label' takes it" } else { "'virtfold tape label --force' takes it" };
    let mut words = match (volume.until.as_deref(), &volume.last) {
        (_, None) => "no known archives".to_owned(),
        (Some(until), _) if volume.expired => format!("expired {}; {take}", show::local(until)),
        (Some(until), _) => format!("kept until {}", show::local(until)),
        (None, _) => "kept until --force: neither its label nor 'retain' sets a time".to_owned(),
    };
    if let (true, Some(last)) = (volume.ahead, &volume.last) {
        words += &format!(
            "; its last archive is dated {}, which is still to come: the clock was ahead, or is behind now; it counts as written now",
            show::local(last)
        );
    }
    if let Some(failed) = &volume.failed {
        words += &format!("; failed: {}", printable(failed));
    }
    words
}

fn archives(count: usize) -> String {
    if count == 1 { "1 archive".to_owned() } else { format!("{count} archives") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_was_written_in_the_future_is_said_to_be() {
        let volume = TapeVolume {
            label: "VF1".to_owned(),
            pool: "default".to_owned(),
            last: Some("2036-01-01T00:00:00Z".to_owned()),
            until: Some("2026-12-30T00:00:00Z".to_owned()),
            expired: false,
            ahead: true,
            free: false,
            failed: None,
        };
        let told = words(&volume);
        assert!(told.starts_with("kept until 2026-12-30") && told.contains("is dated 2036-01-01"), "{told}");
        assert!(!words(&TapeVolume { ahead: false, ..volume }).contains("clock"));
    }
}
