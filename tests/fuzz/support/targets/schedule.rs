//! Schedules and patterns: what is read is shown as it was written, and the times of a schedule go on and on.

use super::super::flags;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use virtfold_config::{Glob, Schedule};

/// One input.
pub fn run(data: &[u8]) {
    let Some((flags, data)) = flags(data) else { return };
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(glob) = text.parse::<Glob>() {
        assert_eq!(glob.to_string(), text);
        glob.matches(text);
    }
    let Ok(schedule) = text.parse::<Schedule>() else { return };
    assert_eq!(schedule.to_string(), text);
    // Around changes of the clock: March, April, October and November of 2026, 50 hours each.
    let start = [1_774_700_000, 1_775_240_000, 1_792_800_000, 1_793_430_000][usize::from(flags & 3)];
    let zones = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"];
    let zone = TimeZone::get(zones[usize::from(flags >> 2 & 3)]).expect("tzdata is there");
    let mut now = Timestamp::from_second(start).expect("a time");
    for _ in 0..20 {
        let Some(next) = schedule.next_after_in(now, &zone) else {
            assert!(schedule.is_manual(), "{text}");
            return;
        };
        assert!(next > now, "{text}: {next} after {now}");
        now = next;
    }
}
