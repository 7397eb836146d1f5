//! Until when the volumes that are known are kept.
//!
//! Imports: `error`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::journal::Catalog;
use super::schema::Sql;
use virtfold_base::error::Result;

/// A volume, as far as it matters for how long it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// What is on its sticker.
    pub label: String,
    /// Its pool.
    pub pool: String,
    /// Until when its label says that it is kept.
    pub retain_until: Option<Timestamp>,
    /// When the last archive on it was begun.
    pub last: Option<Timestamp>,
    /// What went wrong with it.
    pub failed: Option<String>,
}

impl Volume {
    /// Until when it is kept, where its archives are kept for `retain` from the last one on: by that or by
    /// its label, whichever is later. Nothing where neither says so: then it is kept until somebody decides.
    /// An archive that is dated after `now` was written by then, by a clock that was ahead.
    pub fn until(&self, retain: Option<Duration>, now: Timestamp) -> Option<Timestamp> {
        let later = |last: Timestamp, retain: Duration| {
            let span = SignedDuration::try_from(retain).unwrap_or(SignedDuration::MAX);
            last.checked_add(span).unwrap_or(Timestamp::MAX)
        };
        let last = self.last.map(|last| last.min(now));
        self.retain_until.max(last.zip(retain).map(|(last, retain)| later(last, retain)))
    }
}

impl Catalog {
    /// The volumes that are known, by their labels.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn volumes(&self) -> Result<Vec<Volume>> {
        self.read_volumes().map_err(|e| self.unreadable(e))
    }

    fn read_volumes(&self) -> Sql<Vec<Volume>> {
        let connection = self.connection();
        let mut statement = connection.prepare(
            "SELECT v.label, v.pool, v.retain_until, v.failed, max(p.created) FROM tape_volume v
             LEFT JOIN tape_part p ON p.volume = v.id GROUP BY v.id ORDER BY v.label, v.id",
        )?;
        let mut rows = statement.query([])?;
        let mut volumes = Vec::new();
        while let Some(row) = rows.next()? {
            let time = |index: usize| -> Sql<Option<Timestamp>> {
                Ok(row.get::<_, Option<String>>(index)?.map(|text| text.parse()).transpose()?)
            };
            let (label, pool, failed) = (row.get(0)?, row.get(1)?, row.get(3)?);
            volumes.push(Volume { label, pool, retain_until: time(2)?, last: time(4)?, failed });
        }
        Ok(volumes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_time_counts() {
        let at = |second| Timestamp::from_second(second).ok();
        let day = Some(Duration::from_secs(86_400));
        let volume = |retain_until, last| Volume {
            label: "VF1".to_owned(),
            pool: "default".to_owned(),
            retain_until,
            last,
            failed: None,
        };
        let now = Timestamp::from_second(20).unwrap();
        assert_eq!(volume(at(50), at(10)).until(None, now), at(50));
        assert_eq!(volume(at(50), at(10)).until(day, now), at(86_410));
        assert_eq!(volume(at(100_000), at(10)).until(day, now), at(100_000));
        assert_eq!(volume(None, at(10)).until(day, now), at(86_410));
        assert_eq!(volume(None, at(10)).until(None, now), None);
        assert_eq!(volume(None, None).until(day, now), None);
        assert_eq!(volume(None, at(10)).until(Some(Duration::MAX), now), Some(Timestamp::MAX));
        assert_eq!(volume(None, at(4_000_000_000)).until(day, now), at(86_420), "it was written by now");
    }
}
