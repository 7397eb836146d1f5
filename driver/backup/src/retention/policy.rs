//! The rules. For one subject at one place:
//!
//! - Only whole backups count, from the newest to the oldest by the time in their heads. One that is younger
//!   than now was made by a clock that was wrong, or this one is: it does not count, and stays until its time
//!   has come.
//! - `last: N` keeps the newest N.
//! - `hourly`, `daily`, `weekly`, `monthly`, `yearly: N` keep the newest backup of each of the last N hours,
//!   days, weeks (of ISO 8601, from Monday), months, years that have one. Periods without a backup don't
//!   count: N is a number of backups, not an age. They are those of the time zone that is given.
//! - `within: TIME` keeps what is younger than the newest backup but one by no more than that. Counted from
//!   there, a clock that leapt or a host that was off for a month costs nothing.
//! - A backup stays when one rule keeps it, or when a person has pinned it. The newest one stays whatever the
//!   rules say.
//! - What a backup that stays rests on stays, too, and so on down.
//!
//! It follows that a second run right after the first removes nothing, and that a larger number never removes
//! more.
//!
//! Imports: nothing of the crate.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

/// How many backups each rule keeps; a rule without a number keeps none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeepRules {
    /// The newest.
    pub last: Option<u32>,
    /// One an hour.
    pub hourly: Option<u32>,
    /// One a day.
    pub daily: Option<u32>,
    /// One a week.
    pub weekly: Option<u32>,
    /// One a month.
    pub monthly: Option<u32>,
    /// One a year.
    pub yearly: Option<u32>,
    /// All of so long.
    pub within: Option<Duration>,
}

impl KeepRules {
    /// Whether no rule has a number, so that nothing but the newest would be kept.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Keeps what either of both keeps.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            last: self.last.max(other.last),
            hourly: self.hourly.max(other.hourly),
            daily: self.daily.max(other.daily),
            weekly: self.weekly.max(other.weekly),
            monthly: self.monthly.max(other.monthly),
            yearly: self.yearly.max(other.yearly),
            within: self.within.max(other.within),
        }
    }

    fn rules(&self) -> [(KeepRule, u32); 6] {
        let count = |number: Option<u32>| number.unwrap_or(0);
        [
            (KeepRule::Last, count(self.last)),
            (KeepRule::Hourly, count(self.hourly)),
            (KeepRule::Daily, count(self.daily)),
            (KeepRule::Weekly, count(self.weekly)),
            (KeepRule::Monthly, count(self.monthly)),
            (KeepRule::Yearly, count(self.yearly)),
        ]
    }
}

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepRule {
    /// The newest.
    Last,
    /// One an hour.
    Hourly,
    /// One a day.
    Daily,
    /// One a week.
    Weekly,
    /// One a month.
    Monthly,
    /// One a year.
    Yearly,
}

impl KeepRule {
    fn word(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        }
    }

    /// What a backup is of by this rule: its period, or of `last` its own number.
    fn period(self, number: usize, time: Timestamp, zone: &TimeZone) -> String {
        let local = time.to_zoned(zone.clone());
        match self {
            Self::Last => (number + 1).to_string(),
            Self::Hourly => local.strftime("%Y-%m-%d %H:00").to_string(),
            Self::Daily => local.strftime("%Y-%m-%d").to_string(),
            Self::Weekly => local.strftime("%G-W%V").to_string(),
            Self::Monthly => local.strftime("%Y-%m").to_string(),
            Self::Yearly => local.strftime("%Y").to_string(),
        }
    }
}

/// What is to be decided on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PruneCandidate {
    /// The archive's id; nothing where it can't be read.
    pub id: Option<Uuid>,
    /// When it was made.
    pub created: Timestamp,
    /// What it rests on, where it is an increment.
    pub parent: Option<Uuid>,
    /// Whether a person keeps it.
    pub pinned: bool,
    /// What may be done with it.
    pub standing: Prunable,
}

/// What may be done with an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prunable {
    /// It is whole, and ours: the rules decide.
    Yes,
    /// It stays, whatever the rules say, and what it is known to rest on, too. It is no backup to rely on.
    No(String),
    /// It can't be read, stays, and may rest on whatever is older.
    Unreadable(String),
}

/// Why a backup is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeepReason {
    /// A rule keeps it, as the backup of this period.
    Rule(KeepRule, String),
    /// It is not much older than the newest but one.
    Within(Duration),
    /// A person keeps it.
    Pinned,
    /// Nothing newer is whole.
    Newest,
    /// An archive that stays rests on it.
    NeededBy(Uuid),
    /// An archive of this time that can't be read may rest on it.
    MayBeNeeded(Timestamp),
    /// It is younger than now.
    Future,
    /// It is nothing to decide on.
    NotOurs(String),
}

impl fmt::Display for KeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule, period) => write!(f, "{} {period}", rule.word()),
            Self::Within(span) => write!(f, "within {}", words(*span)),
            Self::Pinned => f.write_str("pinned"),
            Self::Newest => f.write_str("newest complete"),
            Self::NeededBy(id) => {
                let id = id.simple().to_string();
                write!(f, "needed by {}", id.get(..8).unwrap_or(&id))
            }
            Self::MayBeNeeded(time) => {
                write!(
                    f,
                    "may be needed by the archive of {}, which can't be read",
                    time.strftime("%Y%m%dT%H%M%SZ")
                )
            }
            Self::Future => f.write_str("made in the future, by this host's clock"),
            Self::NotOurs(why) => f.write_str(why),
        }
    }
}

/// A span as it is written in the configuration.
fn words(span: Duration) -> String {
    let seconds = span.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "m")];
    let whole = units.iter().find(|(unit, _)| seconds > 0 && seconds.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{seconds}s"), |(unit, letter)| format!("{}{letter}", seconds / unit))
}

/// What becomes of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PruneDecision {
    /// It stays, for these reasons; there is at least one.
    Keep(Vec<KeepReason>),
    /// It goes.
    Remove,
}

/// Decides on the backups of one subject at one place; a verdict for each, in their order. `elsewhere` are
/// increments at other places and the archives here that they rest on.
pub fn decide(
    backups: &[PruneCandidate],
    keep: &KeepRules,
    now: Timestamp,
    zone: &TimeZone,
    elsewhere: &[(Uuid, Uuid)],
) -> Vec<PruneDecision> {
    let mut reasons: Vec<Vec<KeepReason>> = vec![Vec::new(); backups.len()];
    let mut note = |index: usize, reason: KeepReason| {
        if let Some(list) = reasons.get_mut(index) {
            list.push(reason);
        }
    };
    let mut counted: Vec<(usize, Timestamp)> = Vec::new();
    for (index, backup) in backups.iter().enumerate() {
        if backup.pinned {
            note(index, KeepReason::Pinned);
        }
        match &backup.standing {
            Prunable::Yes if backup.created > now => note(index, KeepReason::Future),
            Prunable::Yes => counted.push((index, backup.created)),
            Prunable::No(why) | Prunable::Unreadable(why) => note(index, KeepReason::NotOurs(why.clone())),
        }
    }
    counted.sort_by_key(|(index, created)| (std::cmp::Reverse(*created), *index));
    for (rule, number) in keep.rules() {
        for (index, period) in kept_by(rule, number, &counted, zone) {
            note(index, KeepReason::Rule(rule, period));
        }
    }
    if let Some(span) = keep.within {
        within(span, &counted).for_each(|index| note(index, KeepReason::Within(span)));
    }
    if let Some((index, _)) = counted.first() {
        note(*index, KeepReason::Newest);
    }
    unread(backups, &mut reasons);
    needed(backups, elsewhere, &mut reasons);
    let verdict = |reasons: Vec<KeepReason>| {
        if reasons.is_empty() { PruneDecision::Remove } else { PruneDecision::Keep(reasons) }
    };
    reasons.into_iter().map(verdict).collect()
}

/// The newest backup of each of the last `number` periods that have one.
fn kept_by(
    rule: KeepRule,
    number: u32,
    newest_first: &[(usize, Timestamp)],
    zone: &TimeZone,
) -> Vec<(usize, String)> {
    let number = usize::try_from(number).unwrap_or(usize::MAX);
    let mut seen = BTreeSet::new();
    let mut kept = Vec::new();
    for (position, (index, created)) in newest_first.iter().enumerate() {
        if kept.len() >= number {
            break;
        }
        let period = rule.period(position, *created, zone);
        if seen.insert(period.clone()) {
            kept.push((*index, period));
        }
    }
    kept
}

/// What is younger than the newest but one by no more than a span.
fn within(span: Duration, newest_first: &[(usize, Timestamp)]) -> impl Iterator<Item = usize> {
    let from = newest_first.get(1).or(newest_first.first()).map(|(_, created)| *created);
    let since =
        SignedDuration::try_from(span).ok().zip(from).and_then(|(span, from)| from.checked_sub(span).ok());
    let since = since.unwrap_or(Timestamp::MIN);
    newest_first.iter().filter(move |(_, created)| *created >= since).map(|(index, _)| *index)
}

/// What can't be read keeps whatever is not younger.
fn unread(backups: &[PruneCandidate], reasons: &mut [Vec<KeepReason>]) {
    let times = backups.iter().filter(|backup| matches!(backup.standing, Prunable::Unreadable(_)));
    let Some(newest) = times.map(|backup| backup.created).max() else { return };
    for (backup, reasons) in backups.iter().zip(reasons) {
        if backup.standing == Prunable::Yes && backup.created <= newest {
            reasons.push(KeepReason::MayBeNeeded(newest));
        }
    }
}

/// What stays keeps what it rests on. Heads may say anything, a circle, too: each archive is followed once.
fn needed(backups: &[PruneCandidate], elsewhere: &[(Uuid, Uuid)], reasons: &mut [Vec<KeepReason>]) {
    let mut places: BTreeMap<Uuid, Vec<usize>> = BTreeMap::new();
    for (index, backup) in backups.iter().enumerate() {
        backup.id.into_iter().for_each(|id| places.entry(id).or_default().push(index));
    }
    let mut wanted: Vec<(Uuid, Uuid)> = elsewhere.to_vec();
    for (backup, reasons) in backups.iter().zip(reasons.iter()) {
        if !reasons.is_empty() {
            wanted.extend(backup.id.zip(backup.parent));
        }
    }
    let mut followed = BTreeSet::new();
    while let Some((child, parent)) = wanted.pop() {
        for index in places.get(&parent).into_iter().flatten() {
            let (Some(backup), Some(reasons)) = (backups.get(*index), reasons.get_mut(*index)) else {
                continue;
            };
            if !reasons.iter().any(|reason| matches!(reason, KeepReason::NeededBy(_))) {
                reasons.push(KeepReason::NeededBy(child));
            }
            if followed.insert(*index) {
                wanted.extend(backup.id.zip(backup.parent));
            }
        }
    }
}
