//! Which jobs have which guests, worked out once: each question would otherwise hold every job against every
//! guest.
//!
//! A guest's row is made when the guest is new or has another name or other tags, and all are made anew when
//! the configuration was read.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::job_spec::{GuestFacts, JobSpec};
use virtfold_hypervisor::DomainId;

/// What the jobs are to a guest.
#[derive(Clone, Debug, Default)]
pub(super) struct GuestJobs {
    /// The jobs that have it, switched on or not, by their places in the configuration.
    pub(super) jobs: Vec<usize>,
    /// Whether one that is switched on has it.
    pub(super) has_job: bool,
    /// Whether it has no backup because somebody wants it so: a job leaves it out by name, or one that is
    /// switched off has it.
    pub(super) is_left_out: bool,
}

impl GuestJobs {
    pub(super) fn of(guest: &GuestFacts, jobs: &[Arc<JobSpec>]) -> Self {
        let mut row = Self::default();
        let mut is_unwanted = false;
        for (place, job) in jobs.iter().enumerate() {
            let has = job.pick.guest(guest);
            if has {
                row.jobs.push(place);
            }
            row.has_job |= has && job.enabled;
            is_unwanted |= (has && !job.enabled) || job.pick.leaves_out(guest);
        }
        row.is_left_out = is_unwanted && !row.has_job;
        row
    }

    /// Whether nothing backs the guest up, and nobody said that this is right.
    pub(super) fn is_forgotten(&self) -> bool {
        !self.has_job && !self.is_left_out
    }
}

/// The rows of all guests.
#[derive(Debug, Default)]
pub(super) struct Selections {
    rows: BTreeMap<DomainId, SelectedGuest>,
    /// What is said of a guest that there is no row of.
    none: GuestJobs,
}

#[derive(Debug)]
struct SelectedGuest {
    name: String,
    tags: Vec<String>,
    jobs: GuestJobs,
}

impl Selections {
    /// The jobs are others now.
    pub(super) fn forget(&mut self) {
        self.rows.clear();
    }

    /// Makes the rows that are missing, and forgets those of guests that are gone.
    pub(super) fn update(&mut self, guests: &[GuestFacts], jobs: &[Arc<JobSpec>]) {
        let mut before = std::mem::take(&mut self.rows);
        for guest in guests {
            let is_same = |row: &SelectedGuest| row.name == guest.name && row.tags == guest.tags;
            let row = before.remove(&guest.id).filter(is_same).unwrap_or_else(|| SelectedGuest {
                name: guest.name.clone(),
                tags: guest.tags.clone(),
                jobs: GuestJobs::of(guest, jobs),
            });
            self.rows.insert(guest.id, row);
        }
    }

    /// A guest's row.
    pub(super) fn of(&self, guest: DomainId) -> &GuestJobs {
        self.rows.get(&guest).map_or(&self.none, |row| &row.jobs)
    }
}
