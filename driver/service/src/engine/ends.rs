//! What questions are answered from without working it out each time: the last success and the last failure
//! of each job and domain, and when jobs are due next.
//!
//! Which entries are the last ones is asked of the catalog each time, which answers that from an index; so
//! what another process took out (`virtfold forget`) or a clock that was set back is seen at once. What an
//! entry says does not change once it has ended.

use std::collections::BTreeMap;

use jiff::Timestamp;
use uuid::Uuid;

use super::control_api::{failure, success};
use crate::control::{LastFailure, LastSuccess};
use crate::job_spec::JobSpec;
use virtfold_base::error::Result;
use virtfold_catalog::queue::Queue;

/// What an entry that ended is to the status.
#[derive(Clone, Debug)]
pub(super) struct EndedEntry {
    pub(super) domain: Uuid,
    pub(super) name: String,
    pub(super) success: Option<LastSuccess>,
    pub(super) failure: Option<LastFailure>,
}

/// The entries that were read.
#[derive(Debug, Default)]
pub(super) struct LastEnds {
    read: BTreeMap<i64, EndedEntry>,
}

impl LastEnds {
    /// The last ends of those by `until`, in the order of their numbers.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub(super) fn by(
        &mut self,
        queue: &dyn Queue,
        until: Timestamp,
    ) -> Result<impl Iterator<Item = &EndedEntry>> {
        let last = queue.last_end_ids(until)?;
        let mut before = std::mem::take(&mut self.read);
        let mut missing = Vec::new();
        for id in last {
            match before.remove(&id) {
                Some(known) => drop(self.read.insert(id, known)),
                None => missing.push(id),
            }
        }
        for entry in queue.entries(&missing)? {
            let (success, failure) = (success(&entry), failure(&entry));
            let (domain, name) = (entry.wanted.domain.0, entry.wanted.name);
            self.read.insert(entry.id, EndedEntry { domain, name, success, failure });
        }
        Ok(self.read.values())
    }
}

/// When each job is due next, each with the time from which on that is so.
#[derive(Debug, Default)]
pub(super) struct NextDue {
    known: BTreeMap<String, (Timestamp, Option<Timestamp>)>,
}

impl NextDue {
    /// When a job is due next.
    pub(super) fn of(&mut self, job: &JobSpec, now: Timestamp) -> Option<Timestamp> {
        let is_so = |(from, next): &(Timestamp, Option<Timestamp>)| {
            *from <= now && next.is_none_or(|next| now < next)
        };
        match self.known.get(&job.name).filter(|known| is_so(known)) {
            Some((_, next)) => *next,
            None => {
                let next = job.next_after(now);
                self.known.insert(job.name.clone(), (now, next));
                next
            }
        }
    }
}
