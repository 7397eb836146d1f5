//! Schedules against a model that looks at each minute, around every change of the clock; and the grammar.

use jiff::civil::{DateTime, date};
use proptest::collection::btree_set;
use proptest::prelude::*;
use std::collections::BTreeSet;

use super::*;

fn schedule(text: &str) -> Schedule {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn time(text: &str) -> Zoned {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The next times, as the clock of `from`'s zone shows them, with the offset.
fn next(text: &str, from: &str, count: usize) -> Vec<String> {
    let schedule = schedule(text);
    let times = std::iter::successors(Some(time(from)), |now| schedule.next_after(now));
    times.skip(1).take(count).map(|at| at.strftime("%m-%d %H:%M%z").to_string()).collect()
}

/// A schedule in cron's words, and the same as sets. No set stands for `*`.
#[derive(Clone, Debug)]
struct Plan {
    minutes: BTreeSet<i8>,
    hours: Option<BTreeSet<i8>>,
    days: Option<BTreeSet<i8>>,
    weekdays: Option<BTreeSet<i8>>,
}

impl Plan {
    fn text(&self) -> String {
        let list = |set: &BTreeSet<i8>| set.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let or_all = |set: &Option<BTreeSet<i8>>| set.as_ref().map_or("*".to_owned(), list);
        let (hours, days, weekdays) = (or_all(&self.hours), or_all(&self.days), or_all(&self.weekdays));
        format!("{} {hours} {days} * {weekdays}", list(&self.minutes))
    }

    fn takes(&self, time: DateTime) -> bool {
        let day = self.days.as_ref().map(|set| set.contains(&time.day()));
        let weekday = self.weekdays.as_ref().map(|set| set.contains(&time.weekday().to_sunday_zero_offset()));
        let date = match (day, weekday) {
            (Some(day), Some(weekday)) => day || weekday,
            (day, weekday) => day.unwrap_or(true) && weekday.unwrap_or(true),
        };
        let hour = self.hours.as_ref().is_none_or(|set| set.contains(&time.hour()));
        date && hour && self.minutes.contains(&time.minute())
    }

    fn has_every_hour(&self) -> bool {
        self.hours.as_ref().is_none_or(|set| set.len() == 24)
    }

    /// What is due after `from` until `end`, minute by minute.
    fn due(&self, from: Timestamp, end: Timestamp, zone: &TimeZone) -> Vec<Timestamp> {
        let mut now = from - 48.hours();
        // The latest that the clock has shown; only what lies behind it is new.
        let mut latest = zone.to_datetime(now);
        let mut out = Vec::new();
        while now < end {
            now += 1.minute();
            let shown = zone.to_datetime(now);
            let mut due = self.has_every_hour() && self.takes(shown);
            if !self.has_every_hour() && shown > latest {
                let mut minute = latest;
                while minute < shown {
                    minute = minute.checked_add(1.minute()).unwrap();
                    due |= self.takes(minute);
                }
            }
            latest = latest.max(shown);
            if due && now > from {
                out.push(now);
            }
        }
        out
    }
}

fn plans() -> impl Strategy<Value = Plan> {
    let hours = prop_oneof![
        2 => btree_set(0_i8..5, 1..4).prop_map(Some),
        1 => btree_set(0_i8..24, 1..24).prop_map(Some),
        1 => Just(None),
    ];
    let days = prop_oneof![3 => Just(None), 1 => btree_set(1_i8..32, 1..20).prop_map(Some)];
    let weekdays = prop_oneof![3 => Just(None), 1 => btree_set(0_i8..7, 1..4).prop_map(Some)];
    let minutes = prop_oneof![0_i8..60, prop::sample::select(vec![0_i8, 15, 30, 45])];
    (btree_set(minutes, 1..5), hours, days, weekdays).prop_map(|(minutes, hours, days, weekdays)| Plan {
        minutes,
        hours,
        days,
        weekdays,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Half an hour, an hour, at midnight, in both hemispheres.
    #[test]
    fn across_changes_of_the_clock_it_is_as_minute_by_minute(
        plan in plans(),
        zone in prop::sample::select(vec![
            "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo", "America/St_Johns",
        ]),
        change in 0..4_usize,
        before in 0..26 * 60_i64,
        seconds in 0..60_i64,
    ) {
        let zone = TimeZone::get(zone).unwrap();
        let start = date(2025, 12, 1).at(0, 0, 0, 0).to_zoned(zone.clone()).unwrap().timestamp();
        let change = zone.following(start).nth(change).unwrap().timestamp();
        let from = change - before.minutes() - seconds.seconds();
        let whole = change - (before + i64::from(seconds > 0)).minutes();
        let end = whole + 56.hours();
        let schedule = schedule(&plan.text());
        let steps = std::iter::successors(Some(from), |now| schedule.next_after_in(*now, &zone));
        let ours: Vec<_> = steps.skip(1).take_while(|at| *at <= end).collect();
        let theirs: Vec<_> = plan.due(whole, end, &zone).into_iter().filter(|at| *at > from).collect();
        prop_assert_eq!(ours, theirs, "{}", plan.text());
    }

    /// Whatever is accepted has a next time, later than any now, and is shown as it was written.
    #[test]
    fn what_is_read_goes_on(
        text in "(daily|weekly|monthly|[Mm]on|sat..sun|fri,tue|)( |)(\\*-\\*-[0-9*]{1,2}|[0-9]{1,2}-[0-9]{1,2}|)( |)([0-9*]{1,2}:[0-9]{1,2}|)( UTC|)|([0-9*,/-]{1,5} ){4}[0-7*]",
        second in 0_i64..4_000_000_000,
    ) {
        let Ok(read) = text.parse::<Schedule>() else { return Ok(()) };
        prop_assert_eq!(read.to_string(), text.clone());
        let now = Timestamp::from_second(second).unwrap();
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let at = read.next_after_in(now, &zone);
        prop_assert!(at.is_some_and(|at| at > now), "{}: {:?}", text, at);
    }

    #[test]
    fn no_text_makes_it_panic(text in ".{0,40}") {
        let read = text.parse::<Schedule>();
        prop_assert_eq!(read.map(|read| read.to_string()).unwrap_or(text.clone()), text);
    }
}

#[test]
fn a_time_in_the_gap_is_due_once_right_behind_it() {
    let eve = "2026-03-28T12:00:00[Europe/Berlin]";
    assert_eq!(next("daily 02:30", eve, 3), ["03-29 03:00+0200", "03-30 02:30+0200", "03-31 02:30+0200"]);
    // All that the gap swallows is one run, and so is what is due right behind it anyway.
    assert_eq!(next("*/15 2 * * *", eve, 2), ["03-29 03:00+0200", "03-30 02:00+0200"]);
    assert_eq!(next("30 2,3 * * *", eve, 3), ["03-29 03:00+0200", "03-29 03:30+0200", "03-30 02:30+0200"]);
    assert_eq!(next("0 2,3 * * *", eve, 2), ["03-29 03:00+0200", "03-30 02:00+0200"]);
    // Half an hour.
    let eve = "2026-10-03T12:00:00[Australia/Lord_Howe]";
    assert_eq!(next("daily 02:15", eve, 2), ["10-04 02:30+1100", "10-05 02:15+1100"]);
    // At midnight, and a whole day.
    let eve = "2026-04-23T12:00:00[Africa/Cairo]";
    assert_eq!(next("daily", eve, 2), ["04-24 01:00+0300", "04-25 00:00+0300"]);
    let eve = "2011-12-29T12:00:00[Pacific/Apia]";
    assert_eq!(next("daily 02:00", eve, 2), ["12-31 00:00+1400", "12-31 02:00+1400"]);
}

#[test]
fn a_time_that_comes_twice_is_due_the_first_time() {
    let eve = "2026-10-24T12:00:00[Europe/Berlin]";
    assert_eq!(next("daily 02:30", eve, 2), ["10-25 02:30+0200", "10-26 02:30+0100"]);
    assert_eq!(next("0,30 2 * * *", eve, 3), ["10-25 02:00+0200", "10-25 02:30+0200", "10-26 02:00+0100"]);
    // Asked in the second hour: the first has been.
    let second = "2026-10-25T02:10:00+01:00[Europe/Berlin]";
    assert_eq!(next("daily 02:30", second, 1), ["10-26 02:30+0100"]);
    let eve = "2026-04-04T12:00:00[Australia/Lord_Howe]";
    assert_eq!(next("daily 01:45", eve, 2), ["04-05 01:45+1100", "04-06 01:45+1030"]);
}

#[test]
fn every_hour_means_each_real_hour() {
    let eve = "2026-10-25T00:30:00[Europe/Berlin]";
    let expect = ["10-25 01:00+0200", "10-25 02:00+0200", "10-25 02:00+0100", "10-25 03:00+0100"];
    assert_eq!(next("hourly", eve, 4), expect);
    let eve = "2026-03-29T00:30:00[Europe/Berlin]";
    assert_eq!(next("hourly", eve, 3), ["03-29 01:00+0100", "03-29 03:00+0200", "03-29 04:00+0200"]);
    assert_eq!(next("*:30", eve, 2), ["03-29 01:30+0100", "03-29 03:30+0200"]);
    // Back by half an hour: two o'clock comes once, half past one twice.
    let eve = "2026-04-05T00:30:00[Australia/Lord_Howe]";
    assert_eq!(next("hourly", eve, 2), ["04-05 01:00+1100", "04-05 02:00+1030"]);
    assert_eq!(next("*:30", eve, 2), ["04-05 01:30+1100", "04-05 01:30+1030"]);
}

#[test]
fn a_zone_of_its_own_counts_and_the_answer_is_in_the_askers() {
    let from = "2026-07-01T00:00:00[Europe/Berlin]";
    assert_eq!(next("daily 02:00 UTC", from, 1), ["07-01 04:00+0200"]);
    assert_eq!(next("0 2 * * * America/New_York", from, 1), ["07-01 08:00+0200"]);
    assert_eq!(next("daily 02:00 america/new_york", from, 1), ["07-01 08:00+0200"]);
    assert_eq!(next("manual", from, 1), Vec::<String>::new());
    assert!(schedule(" Manual ").is_manual());
}

#[test]
fn each_form_means_its_cron() {
    for (text, cron) in [
        ("hourly", "0 * * * *"),
        ("@hourly", "0 * * * *"),
        ("daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("Daily 02:05", "5 2 * * *"),
        ("02:05", "5 2 * * *"),
        ("02:05:00", "5 2 * * *"),
        ("*-*-* 2:5", "5 2 * * *"),
        ("weekly", "0 0 * * mon"),
        ("@weekly", "0 0 * * 0"),
        ("weekly 03:00", "0 3 * * 1"),
        ("mon..fri 22:30", "30 22 * * 1-5"),
        ("Mon-Fri 22:30", "30 22 * * 1-5"),
        ("Monday,thu 02:00", "0 2 * * 1,4"),
        ("sat..sun", "0 0 * * 6,7"),
        ("sat..sun", "0 0 * * sat-sun"),
        ("sun..tue", "0 0 * * 0-2"),
        ("*-*-01 04:00", "0 4 1 * *"),
        ("monthly 04:00", "0 4 1 * *"),
        ("@monthly", "0 0 1 * *"),
        ("quarterly", "0 0 1 1,4,7,10 *"),
        ("semiannually", "0 0 1 jan,jul *"),
        ("01-01", "0 0 1 1 *"),
        ("yearly", "@annually"),
        ("*-jan,jul-1..15/7 8..18/2:0/20", "*/20 8-18/2 1,8,15 1,7 *"),
        ("*:*", "* * * * *"),
        ("0/6:00", "0 */6 * * *"),
    ] {
        let (ScheduleRule::At(ours, None), ScheduleRule::At(theirs, None)) =
            (schedule(text).rule, schedule(cron).rule)
        else {
            panic!("{text}")
        };
        // A day of the week that is restricted in cron beside a day of the month that is not.
        assert_eq!(ours, Calendar { either: ours.either, ..theirs }, "{text}");
    }
}

#[test]
fn cron_takes_either_day_and_calendar_words_both() {
    let from = "2026-07-01T12:00:00[UTC]";
    assert_eq!(next("0 2 15 * fri", from, 3), ["07-03 02:00+0000", "07-10 02:00+0000", "07-15 02:00+0000"]);
    // The first Saturday of a month.
    assert_eq!(next("sat *-*-1..7 03:00", from, 2), ["07-04 03:00+0000", "08-01 03:00+0000"]);
    assert_eq!(next("29 2 29 2 *", from, 1), ["02-29 02:29+0000"]);
    let leap = schedule("mon 02-29").next_after(&time("2072-03-01T00:00:00[UTC]")).unwrap();
    assert_eq!(leap.strftime("%F %A").to_string(), "2112-02-29 Monday");
}

#[test]
fn what_is_no_schedule_says_why() {
    for (text, why) in [
        ("", "it is empty"),
        ("   ", "it is empty"),
        ("nightly", "unknown word 'nightly' in a schedule"),
        ("dayly 02:00", "did you mean `daily`?"),
        ("tusday 02:00", "did you mean `tuesday`?"),
        ("mon,tusday 02:00", "did you mean `tuesday`?"),
        ("61 2 * * *", "'61' is not a valid minute; they go from 0 to 59"),
        ("0 24 * * *", "'24' is not a valid hour"),
        ("0 0 0 * *", "'0' is not a valid day of a month"),
        ("0 0 * 13 *", "'13' is not a valid month"),
        ("0 0 * * 8", "'8' is not a valid weekday"),
        ("*/0 * * * *", "'/0' is not a valid step"),
        ("*/90 * * * *", "'/90' is not a valid step of a minute"),
        ("50-10 * * * *", "'50-10' goes backwards"),
        ("0 0 30 2 *", "never comes"),
        ("*-02-30", "never comes"),
        ("04,06,09,11-31", "never comes"),
        ("0 2 * * * *", "has 6 fields"),
        ("0 2 * *", "has 4 fields"),
        ("@reboot", "none of @hourly"),
        ("2027-01-01 02:00", "has a year"),
        ("daily 02:00:30", "has seconds"),
        ("daily 25:00", "'25' is not a valid hour"),
        ("daily 02", "only a time of day"),
        ("daily *-*-01", "only a time of day"),
        ("hourly 02:00", "'hourly' is at the full hour"),
        ("mon 02:00 tue", "'tue' after the time is not a time zone"),
        ("mon..fri *-*-01 02:00 03:00 04:00", "too many words"),
        ("daily 02:00 Europe/Berln", "did you mean `Europe/Berlin`?"),
        ("daily 02:00 Mars/Olympus", "this host knows no time zone 'Mars/Olympus'"),
        ("daily 02:00 CET", "'cet' after the time is not a time zone"),
        ("02:00 daily", "'daily' after the time is not a time zone"),
        ("-1:00", "is not a valid hour"),
        ("1,,2:00", "'' is not a valid hour"),
        ("٣:00", "is no"),
        ("002:00", "is not a valid hour"),
    ] {
        let error = text.parse::<Schedule>().map(|read| read.to_string()).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
    assert!("x".repeat(201).parse::<Schedule>().is_err());
}
