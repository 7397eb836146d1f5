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
//!   rules say, and so does the newest that was verified.
//! - What a backup that stays rests on stays, too, and so on down.
//!
//! Not every backup may push others out: anybody who can write to a place can put archives there.
//!
//! - One that the catalog does not know, that is not authentic, or that failed its verification, counts for
//!   nothing and stays.
//! - One that was never verified though an older one was counts for itself alone.
//! - One in the clear counts for itself and others in the clear, never against an encrypted one.
//!
//! So each backup is judged in a list of its own: those that may push it out, and itself. It stays when a
//! rule keeps it there.
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
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// Whether it was verified.
    pub verified: VerifyStanding,
    /// Why it is not known to be of who it says, where that is asked for.
    pub doubt: Option<String>,
    /// What may be done with it.
    pub standing: Prunable,
}

/// Whether a backup was verified, and what that is worth beside the others of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyStanding {
    /// It was sound when it was verified last.
    Sound,
    /// It never was, and no older one either.
    Unverified,
    /// It never was, though an older one was: nobody knows whether it is as good as that.
    Overdue,
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
    /// It is whole, and the catalog does not know it: as [`Prunable::No`], until it does.
    NotRecorded,
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
    /// Nothing newer was verified.
    NewestVerified,
    /// It would have gone, but those that push it out are in the clear.
    PlaintextDisplacesNone,
    /// It pushes nothing out: it was never verified, though an older one was.
    CountsAlone,
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
            Self::NewestVerified => f.write_str("newest verified"),
            Self::PlaintextDisplacesNone => f.write_str("archives in the clear push no encrypted one out"),
            Self::CountsAlone => f.write_str("pushes nothing out: never verified, though an older one was"),
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
    let mut counted: Vec<usize> = Vec::new();
    for ((index, backup), reasons) in backups.iter().enumerate().zip(&mut reasons) {
        match uncounted(backup, now) {
            Some(why) => reasons.push(why),
            None => counted.push(index),
        }
    }
    let created = |index: usize| backups.get(index).map(|backup| backup.created);
    counted.sort_by_key(|index| (std::cmp::Reverse(created(*index)), *index));
    let ranking = Ranking { backups, counted, keep, zone };
    ranking.note(&mut reasons);
    for (backup, reasons) in backups.iter().zip(&mut reasons) {
        if backup.pinned {
            reasons.push(KeepReason::Pinned);
        }
    }
    unread(backups, &mut reasons);
    needed(backups, elsewhere, &mut reasons);
    let verdict = |reasons: Vec<KeepReason>| {
        if reasons.is_empty() { PruneDecision::Remove } else { PruneDecision::Keep(reasons) }
    };
    reasons.into_iter().map(verdict).collect()
}

/// Why a backup stays without being counted; nothing where the rules decide.
fn uncounted(backup: &PruneCandidate, now: Timestamp) -> Option<KeepReason> {
    match (&backup.standing, &backup.doubt) {
        (Prunable::No(why) | Prunable::Unreadable(why), _) => Some(KeepReason::NotOurs(why.clone())),
        (Prunable::NotRecorded, _) => Some(KeepReason::NotOurs("not in the catalog".to_owned())),
        (Prunable::Yes, Some(why)) => Some(KeepReason::NotOurs(why.clone())),
        (Prunable::Yes, None) => (backup.created > now).then_some(KeepReason::Future),
    }
}

/// Which of a backup's lists the plain ones are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rivals {
    All,
    Encrypted,
}

/// The backups that count, and by which rules.
struct Ranking<'a> {
    backups: &'a [PruneCandidate],
    /// Newest first.
    counted: Vec<usize>,
    keep: &'a KeepRules,
    zone: &'a TimeZone,
}

impl Ranking<'_> {
    /// Notes why each of them stays.
    fn note(&self, reasons: &mut [Vec<KeepReason>]) {
        for index in &self.counted {
            let (Some(backup), Some(reasons)) = (self.backups.get(*index), reasons.get_mut(*index)) else {
                continue;
            };
            let rivals = if backup.encrypted { Rivals::Encrypted } else { Rivals::All };
            reasons.extend(self.kept(*index, backup, rivals));
            if self.is_newest_verified(*index, backup, rivals) {
                reasons.push(KeepReason::NewestVerified);
            }
            if reasons.is_empty() {
                continue;
            }
            if backup.encrypted && self.kept(*index, backup, Rivals::All).is_empty() {
                reasons.push(KeepReason::PlaintextDisplacesNone);
            }
            if backup.verified == VerifyStanding::Overdue {
                reasons.push(KeepReason::CountsAlone);
            }
        }
    }

    /// What may push a backup out, and itself, newest first.
    fn list(&self, own: usize, rivals: Rivals) -> impl Iterator<Item = (usize, Timestamp)> {
        let counts = move |index: usize, other: &PruneCandidate| {
            index == own
                || other.verified != VerifyStanding::Overdue && (rivals == Rivals::All || other.encrypted)
        };
        let others = self.counted.iter().filter_map(|index| Some((*index, self.backups.get(*index)?)));
        others
            .filter(move |(index, other)| counts(*index, other))
            .map(|(index, other)| (index, other.created))
    }

    /// Why a backup stays in its list.
    fn kept(&self, own: usize, backup: &PruneCandidate, rivals: Rivals) -> Vec<KeepReason> {
        let mut reasons = Vec::new();
        for (rule, number) in self.keep.rules().into_iter().filter(|(_, number)| *number > 0) {
            let period = kept_by(rule, number, own, self.list(own, rivals), self.zone);
            reasons.extend(period.map(|period| KeepReason::Rule(rule, period)));
        }
        if let Some(span) = self.keep.within
            && backup.created >= since(span, self.list(own, rivals))
        {
            reasons.push(KeepReason::Within(span));
        }
        if self.list(own, rivals).next().is_some_and(|(newest, _)| newest == own) {
            reasons.push(KeepReason::Newest);
        }
        reasons
    }

    /// Whether nothing newer in its list was verified, and it was.
    fn is_newest_verified(&self, own: usize, backup: &PruneCandidate, rivals: Rivals) -> bool {
        let is_sound = |index: &usize| {
            self.backups.get(*index).is_some_and(|other| other.verified == VerifyStanding::Sound)
        };
        let newest = self.list(own, rivals).map(|(index, _)| index).find(is_sound);
        backup.verified == VerifyStanding::Sound && newest == Some(own)
    }
}

/// The period as whose newest backup one of a list, newest first, is kept: of the last `number` that have
/// one.
fn kept_by(
    rule: KeepRule,
    number: u32,
    own: usize,
    newest_first: impl Iterator<Item = (usize, Timestamp)>,
    zone: &TimeZone,
) -> Option<String> {
    let number = usize::try_from(number).unwrap_or(usize::MAX);
    let mut seen = BTreeSet::new();
    for (position, (index, created)) in newest_first.enumerate() {
        if seen.len() >= number {
            break;
        }
        let period = rule.period(position, created, zone);
        let is_new = seen.insert(period.clone());
        if index == own {
            return is_new.then_some(period);
        }
    }
    None
}

/// Since when a list, newest first, keeps all of a span: counted from the newest but one.
fn since(span: Duration, mut newest_first: impl Iterator<Item = (usize, Timestamp)>) -> Timestamp {
    let newest = newest_first.next();
    let from = newest_first.next().or(newest).map(|(_, created)| created);
    let since =
        SignedDuration::try_from(span).ok().zip(from).and_then(|(span, from)| from.checked_sub(span).ok());
    since.unwrap_or(Timestamp::MIN)
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
