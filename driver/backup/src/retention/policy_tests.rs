//! The rules against a naive model, and what must hold whatever they are.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::date;
use jiff::tz::TimeZone;
use proptest::prelude::*;
use uuid::Uuid;

use super::policy::*;

const NOW: i64 = 1_800_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn now() -> Timestamp {
    at(NOW)
}

fn whole(id: u128, created: Timestamp, parent: Option<u128>) -> PruneCandidate {
    PruneCandidate {
        id: Some(Uuid::from_u128(id)),
        created,
        parent: parent.map(Uuid::from_u128),
        pinned: false,
        encrypted: false,
        verified: VerifyStanding::Unverified,
        doubt: None,
        standing: Prunable::Yes,
    }
}

fn words(decision: &PruneDecision) -> Vec<String> {
    match decision {
        PruneDecision::Keep(reasons) => reasons.iter().map(ToString::to_string).collect(),
        PruneDecision::Remove => Vec::new(),
    }
}

/// Five days, of which `special` makes something else.
fn days(special: impl Fn(usize, &mut PruneCandidate)) -> Vec<PruneCandidate> {
    let mut days: Vec<PruneCandidate> = (0..5)
        .map(|day| whole(day + 1, at(NOW - 86_400 * (5 - i64::try_from(day).unwrap())), None))
        .collect();
    days.iter_mut().enumerate().for_each(|(index, backup)| special(index, backup));
    days
}

const ONE: KeepRules = KeepRules {
    last: Some(1),
    hourly: None,
    daily: None,
    weekly: None,
    monthly: None,
    yearly: None,
    within: None,
};

/// Anybody can put such archives there: they stay, and change nothing for the others.
#[test]
fn what_is_not_recorded_or_not_authentic_pushes_nothing_out() {
    for (standing, doubt, why) in [
        (Prunable::NotRecorded, None, "not in the catalog"),
        (Prunable::Yes, Some("unsigned".to_owned()), "unsigned"),
        (Prunable::No("failed its verification".into()), None, "failed its verification"),
    ] {
        let backups = days(|day, backup| {
            if day >= 3 {
                (backup.standing, backup.doubt) = (standing.clone(), doubt.clone());
            }
        });
        let verdicts = utc(&backups, &ONE);
        assert_eq!(removed(&verdicts), [0, 1], "{why}");
        assert_eq!(words(&verdicts[2]), ["last 1", "newest complete"]);
        assert_eq!(words(&verdicts[4]), [why]);
    }
}

#[test]
fn what_is_in_the_clear_pushes_no_encrypted_one_out() {
    let backups = days(|day, backup| backup.encrypted = day < 2);
    let verdicts = utc(&backups, &ONE);
    assert_eq!(removed(&verdicts), [0, 2, 3]);
    let why = ["last 1", "newest complete", "archives in the clear push no encrypted one out"];
    assert_eq!(words(&verdicts[1]), why);
    // The other way round they do: the job encrypts now.
    let verdicts = utc(&days(|day, backup| backup.encrypted = day >= 2), &ONE);
    assert_eq!(removed(&verdicts), [0, 1, 2, 3]);
}

#[test]
fn what_was_never_verified_though_an_older_one_was_counts_alone() {
    let verified = |day: usize, backup: &mut PruneCandidate| {
        backup.verified = match day {
            0 => VerifyStanding::Unverified,
            1 | 2 => VerifyStanding::Sound,
            _ => VerifyStanding::Overdue,
        };
        backup.parent = (day == 2).then_some(Uuid::from_u128(1));
    };
    let verdicts = utc(&days(verified), &ONE);
    assert_eq!(removed(&verdicts), [1], "the newest verified one stays, and what it rests on");
    assert_eq!(words(&verdicts[2]), ["last 1", "newest complete", "newest verified"]);
    let alone = "pushes nothing out: never verified, though an older one was";
    assert_eq!(words(&verdicts[3]), ["last 1", "newest complete", alone]);
    assert_eq!(words(&verdicts[0]), ["needed by 00000000"]);
    // Verified ones push it out.
    let newest = |day: usize, backup: &mut PruneCandidate| {
        verified(day, backup);
        if day == 4 {
            backup.verified = VerifyStanding::Sound;
        }
    };
    assert_eq!(removed(&utc(&days(newest), &ONE)), [0, 1, 2, 3]);
}

fn removed(verdicts: &[PruneDecision]) -> Vec<usize> {
    let goes = verdicts.iter().enumerate().filter(|(_, verdict)| **verdict == PruneDecision::Remove);
    goes.map(|(index, _)| index).collect()
}

fn utc(backups: &[PruneCandidate], keep: &KeepRules) -> Vec<PruneDecision> {
    decide(backups, keep, now(), &TimeZone::UTC, &[])
}

/// A backup at noon (UTC) of each day of the year, newest first, and one an hour earlier.
fn year() -> Vec<PruneCandidate> {
    let first = date(2026, 1, 1).at(12, 0, 0, 0).to_zoned(TimeZone::UTC).unwrap().timestamp().as_second();
    let days = (0..365).rev().flat_map(|day| [first + day * 86_400, first + day * 86_400 - 3600]);
    days.zip(1..).map(|(second, id)| whole(id, at(second), None)).collect()
}

fn kept_days(keep: &KeepRules) -> Vec<String> {
    let backups = year();
    let verdicts = utc(&backups, keep);
    let kept = backups.iter().zip(&verdicts).filter(|(_, verdict)| **verdict != PruneDecision::Remove);
    kept.map(|(backup, _)| backup.created.strftime("%m-%d %H").to_string()).collect()
}

#[test]
fn each_rule_keeps_the_newest_of_its_periods() {
    let none = KeepRules::default();
    assert_eq!(kept_days(&none), ["12-31 12"], "the newest stays");
    assert_eq!(kept_days(&KeepRules { last: Some(3), ..none }), ["12-31 12", "12-31 11", "12-30 12"]);
    assert_eq!(kept_days(&KeepRules { hourly: Some(3), ..none }), ["12-31 12", "12-31 11", "12-30 12"]);
    assert_eq!(kept_days(&KeepRules { daily: Some(2), ..none }), ["12-31 12", "12-30 12"]);
    // 2026-12-31 is a Thursday.
    assert_eq!(kept_days(&KeepRules { weekly: Some(3), ..none }), ["12-31 12", "12-27 12", "12-20 12"]);
    assert_eq!(kept_days(&KeepRules { monthly: Some(3), ..none }), ["12-31 12", "11-30 12", "10-31 12"]);
    assert_eq!(
        kept_days(&KeepRules { yearly: Some(5), ..none }),
        ["12-31 12", "12-31 12"][..1],
        "there is one year"
    );
    let both = KeepRules { daily: Some(2), monthly: Some(2), ..none };
    assert_eq!(kept_days(&both), ["12-31 12", "12-30 12", "11-30 12"]);
}

#[test]
fn weeks_are_those_of_iso_8601_and_days_those_of_the_zone() {
    let time = |text: &str| text.parse::<Timestamp>().unwrap();
    // The first of January 2027 is a Friday: its week is the 53rd of 2026.
    let backups = [
        whole(1, time("2026-12-28T12:00:00Z"), None),
        whole(2, time("2027-01-03T12:00:00Z"), None),
        whole(3, time("2027-01-03T23:30:00Z"), None),
    ];
    let weekly = KeepRules { weekly: Some(9), ..KeepRules::default() };
    let late = time("2027-02-01T00:00:00Z");
    let utc = decide(&backups, &weekly, late, &TimeZone::UTC, &[]);
    assert_eq!(removed(&utc), [0, 1]);
    let PruneDecision::Keep(reasons) = &utc[2] else { panic!("{utc:?}") };
    let words: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    assert_eq!(words, ["weekly 2026-W53", "newest complete"]);
    let berlin = TimeZone::fixed(jiff::tz::offset(1));
    assert_eq!(removed(&decide(&backups, &weekly, late, &berlin, &[])), [0], "there it is Monday already");
}

#[test]
fn backups_of_the_future_stay_and_count_for_nothing() {
    let backups = [
        whole(1, at(NOW - 100), None),
        whole(2, at(NOW - 50), None),
        whole(3, at(NOW + 1), None),
        whole(4, at(NOW + 100_000_000), None),
    ];
    let verdicts = utc(&backups, &KeepRules { last: Some(1), ..KeepRules::default() });
    assert_eq!(removed(&verdicts), [0]);
    assert_eq!(verdicts[3], PruneDecision::Keep(vec![KeepReason::Future]));
    // The clock is set back behind all of them: nothing is decided on, nothing goes.
    let early = decide(&backups, &KeepRules::default(), at(0), &TimeZone::UTC, &[]);
    assert_eq!(removed(&early), Vec::<usize>::new());
}

#[test]
fn what_is_young_stays_and_a_clock_that_leaps_costs_nothing() {
    let days = |number: u64| KeepRules {
        within: Some(Duration::from_secs(number * 86_400)),
        ..KeepRules::default()
    };
    assert_eq!(kept_days(&days(1)), ["12-31 12", "12-31 11", "12-30 12", "12-30 11"]);
    assert_eq!(kept_days(&days(300)).len(), 602);
    let day = 86_400;
    let old = |age: i64| whole(u128::try_from(age).unwrap(), at(NOW - age * day), None);
    let mut backups = vec![old(40), old(31), old(30)];
    assert_eq!(removed(&utc(&backups, &days(2))), [0]);
    // The host was off, or its clock is ten years ahead: what it had stays until there are two new ones.
    backups.push(whole(1, at(NOW), None));
    assert_eq!(removed(&utc(&backups, &days(2))), [0]);
    backups.push(whole(2, at(NOW), None));
    assert_eq!(removed(&utc(&backups, &days(2))), [0, 1, 2]);
    let reasons = |keep: &KeepRules| match &utc(&backups, keep)[4] {
        PruneDecision::Keep(reasons) => reasons.iter().map(ToString::to_string).collect::<Vec<_>>(),
        PruneDecision::Remove => Vec::new(),
    };
    assert_eq!(reasons(&days(2)), ["within 2d"]);
    assert_eq!(
        reasons(&KeepRules { within: Some(Duration::from_secs(90)), ..KeepRules::default() }),
        ["within 90s"]
    );
}

#[test]
fn what_a_person_pins_stays_with_what_it_rests_on() {
    let mut backups = vec![
        whole(1, at(10), None),
        whole(2, at(20), Some(1)),
        whole(3, at(30), None),
        whole(4, at(40), None),
    ];
    backups[1].pinned = true;
    let verdicts = utc(&backups, &KeepRules::default());
    assert_eq!(removed(&verdicts), [2]);
    assert_eq!(verdicts[1], PruneDecision::Keep(vec![KeepReason::Pinned]));
}

#[test]
fn what_cant_be_read_keeps_what_is_older() {
    let unread = PruneCandidate {
        id: None,
        standing: Prunable::Unreadable("encrypted".into()),
        ..whole(0, at(20), None)
    };
    let backups = [whole(1, at(10), None), unread, whole(2, at(30), None), whole(3, at(40), None)];
    let verdicts = utc(&backups, &KeepRules::default());
    assert_eq!(removed(&verdicts), [2]);
    let PruneDecision::Keep(reasons) = &verdicts[0] else { panic!("{verdicts:?}") };
    assert!(reasons[0].to_string().contains("19700101T000020Z"), "{}", reasons[0]);
}

#[test]
fn what_stays_keeps_its_ancestors_here_and_from_elsewhere() {
    let mut backups: Vec<PruneCandidate> =
        (1..=5).map(|id| whole(id, at(10 * i64::try_from(id).unwrap()), None)).collect();
    backups[4].parent = Some(Uuid::from_u128(2));
    backups[1].parent = Some(Uuid::from_u128(1));
    let verdicts = utc(&backups, &KeepRules::default());
    assert_eq!(removed(&verdicts), [2, 3]);
    assert_eq!(verdicts[0], PruneDecision::Keep(vec![KeepReason::NeededBy(Uuid::from_u128(2))]));
    let elsewhere = [(Uuid::from_u128(99), Uuid::from_u128(3))];
    let verdicts = decide(&backups, &KeepRules::default(), now(), &TimeZone::UTC, &elsewhere);
    assert_eq!(removed(&verdicts), [3]);
    // A damaged increment rests on its parent, too; circles end.
    backups[4] = PruneCandidate { standing: Prunable::No("damaged".into()), ..backups[4].clone() };
    backups[0].parent = Some(Uuid::from_u128(5));
    assert_eq!(removed(&utc(&backups, &KeepRules::default())), [2]);
}

fn keep() -> impl Strategy<Value = KeepRules> {
    let number = || proptest::option::of(0u32..6);
    let span = proptest::option::of((0u64..2_000_000).prop_map(Duration::from_secs));
    (number(), number(), number(), number(), number(), number(), span).prop_map(
        |(last, hourly, daily, weekly, monthly, yearly, within)| KeepRules {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
            within,
        },
    )
}

fn backups() -> impl Strategy<Value = Vec<PruneCandidate>> {
    let spread = prop_oneof![Just(3_000i64), Just(400_000), Just(40_000_000)];
    let one = (spread, 0i64..1000, proptest::option::of(0u128..20), 0u8..36);
    proptest::collection::vec(one, 0..20).prop_map(|list| {
        let make = |(index, (spread, step, parent, kind)): (u128, (i64, i64, Option<u128>, u8))| {
            let standing = match kind % 12 {
                0 => Prunable::No("damaged".into()),
                1 => Prunable::Unreadable("encrypted".into()),
                2 => Prunable::NotRecorded,
                _ => Prunable::Yes,
            };
            let verified = match kind / 3 % 3 {
                0 => VerifyStanding::Sound,
                1 => VerifyStanding::Unverified,
                _ => VerifyStanding::Overdue,
            };
            let doubt = (kind == 13).then(|| "unsigned".to_owned());
            // Some are from the future.
            let created = at(NOW + spread - step * spread / 500 * 4);
            let parent = parent.filter(|_| kind % 2 == 0);
            let encrypted = kind % 5 < 2;
            PruneCandidate { standing, verified, doubt, encrypted, ..whole(index, created, parent) }
        };
        (0u128..).zip(list).map(make).collect()
    })
}

/// Whether the rules decide on it.
fn counts(backup: &PruneCandidate) -> bool {
    let doubtful = backup.doubt.is_some();
    backup.standing == Prunable::Yes && !doubtful && backup.created <= now()
}

/// The rules as a person would check them: a backup is kept by a rule when nothing newer is of its period,
/// and fewer than N periods have something newer; where only those count that may push it out.
fn model_keeps(backups: &[PruneCandidate], keep: &KeepRules, index: usize) -> bool {
    let rival = |b: &PruneCandidate| {
        b.verified != VerifyStanding::Overdue && (b.encrypted || !backups[index].encrypted)
    };
    let newer = |a: usize, b: usize| {
        (backups[a].created, std::cmp::Reverse(a)) > (backups[b].created, std::cmp::Reverse(b))
    };
    let whole: Vec<usize> =
        (0..backups.len()).filter(|i| counts(&backups[*i]) && (*i == index || rival(&backups[*i]))).collect();
    if !whole.contains(&index) {
        return true;
    }
    let newer_ones: Vec<usize> = whole.iter().copied().filter(|other| newer(*other, index)).collect();
    let by_period = |number: Option<u32>, of: fn(jiff::Zoned) -> (i16, i32, i32)| {
        let period = |i: usize| of(backups[i].created.to_zoned(TimeZone::UTC));
        let mut periods: Vec<_> = newer_ones.iter().map(|i| period(*i)).collect();
        periods.sort_unstable();
        periods.dedup();
        !periods.contains(&period(index)) && periods.len() < usize::try_from(number.unwrap_or(0)).unwrap()
    };
    let mut times: Vec<Timestamp> = whole.iter().map(|i| backups[*i].created).collect();
    times.sort_unstable();
    let last_but_one = times[times.len().saturating_sub(2)];
    let young = |span: Duration| {
        let age = last_but_one.as_second() - backups[index].created.as_second();
        age <= i64::try_from(span.as_secs()).unwrap()
    };
    let sound = |i: &usize| backups[*i].verified == VerifyStanding::Sound;
    newer_ones.is_empty()
        || sound(&index) && !newer_ones.iter().any(sound)
        || keep.within.is_some_and(young)
        || newer_ones.len() < usize::try_from(keep.last.unwrap_or(0)).unwrap()
        || by_period(keep.hourly, |t| (t.year(), i32::from(t.date().day_of_year()), i32::from(t.hour())))
        || by_period(keep.daily, |t| (t.year(), i32::from(t.date().day_of_year()), 0))
        || by_period(keep.weekly, |t| {
            let week = t.date().iso_week_date();
            (week.year(), i32::from(week.week()), 0)
        })
        || by_period(keep.monthly, |t| (t.year(), i32::from(t.month()), 0))
        || by_period(keep.yearly, |t| (t.year(), 0, 0))
}

proptest! {
    #[test]
    fn the_rules_keep_what_the_model_keeps(backups in backups(), keep in keep()) {
        let alone: Vec<PruneCandidate> = backups.iter().map(|b| {
            // Without ties to each other the rules are seen alone.
            let standing = match &b.standing { Prunable::Unreadable(why) => Prunable::No(why.clone()), other => other.clone() };
            PruneCandidate { parent: None, standing, ..b.clone() }
        }).collect();
        let verdicts = utc(&alone, &keep);
        for (index, verdict) in verdicts.iter().enumerate() {
            prop_assert_eq!(*verdict != PruneDecision::Remove, model_keeps(&alone, &keep, index), "{}", index);
        }
    }

    #[test]
    fn whatever_the_rules_nothing_needed_goes(backups in backups(), keep in keep()) {
        let verdicts = utc(&backups, &keep);
        let goes = |index: usize| verdicts[index] == PruneDecision::Remove;
        let newest = backups.iter().enumerate().filter(|(_, b)| counts(b));
        if let Some((newest, _)) = newest.max_by_key(|(index, b)| (b.created, std::cmp::Reverse(*index))) {
            prop_assert!(!goes(newest));
        }
        for (index, backup) in backups.iter().enumerate() {
            prop_assert!(!goes(index) || backup.standing == Prunable::Yes);
            let parent = backups.iter().position(|other| other.id == backup.parent);
            if let Some(parent) = parent {
                prop_assert!(!goes(parent) || goes(index), "{} rests on {}", index, parent);
            }
        }
    }

    #[test]
    fn a_second_run_removes_nothing(backups in backups(), keep in keep()) {
        let verdicts = utc(&backups, &keep);
        let left: Vec<PruneCandidate> = backups.iter().zip(&verdicts).filter(|(_, v)| **v != PruneDecision::Remove).map(|(b, _)| b.clone()).collect();
        prop_assert_eq!(removed(&utc(&left, &keep)), Vec::<usize>::new());
    }

    #[test]
    fn keeping_more_never_removes_more(backups in backups(), keep in keep(), more in keep()) {
        let (few, many) = (removed(&utc(&backups, &keep)), removed(&utc(&backups, &keep.and(more))));
        prop_assert!(many.iter().all(|index| few.contains(index)), "{:?} {:?}", few, many);
    }
}
