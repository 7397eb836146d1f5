//! What comes before a job: the domain is there, and no earlier job of it is open.
//!
//! One kind of open job is in nobody's way: one of which all that is left is a thaw, because the guest's
//! agent does not answer. Its guest is on its own disks. An agent that is gone for good would keep that job
//! open for good, so a new job takes the thaw over.
//!
//! Imports: `error`, `catalog`, `hypervisor`, `domain_view`.

use uuid::Uuid;

use super::FreezeContext;
use super::domain_view::DomainView;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_catalog::{
    FreezeSession, JournalEntry, SessionDisk, SessionKind, SessionOutcome, SessionState, UnfreezeState,
};
use virtfold_hypervisor::watchdog::GuestHold;
use virtfold_hypervisor::{DomainId, DomainInfo};

/// What a job begins with.
pub(super) struct NewSession {
    pub(super) view: DomainView,
    pub(super) info: DomainInfo,
    /// Jobs that the new one takes over.
    left: Vec<FreezeSession>,
}

impl NewSession {
    /// Looks at a domain that a job is to begin for.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] where an earlier job is open, [`ErrorKind::NotFound`] where there is no such
    /// domain.
    pub(super) fn look(host: &FreezeContext<'_>, domain: DomainId) -> Result<Self> {
        let left = host.journal.open_sessions(Some(domain))?;
        if !left.iter().all(is_only_frozen) {
            let message = format!("an earlier backup of domain {domain} is not cleaned up");
            return Err(Error::new(ErrorKind::InUse, message).with_hint("run `virtfold recover`"));
        }
        let view = DomainView::look(host.hypervisor, domain)?;
        let missing = || Error::new(ErrorKind::NotFound, format!("there is no domain {domain}"));
        let info = view.info.clone().ok_or_else(missing)?;
        Ok(Self { view, info, left })
    }

    /// A new job of this domain, with what earlier ones have left to do.
    pub(super) fn job(
        &self,
        host: &FreezeContext<'_>,
        kind: SessionKind,
        state: SessionState,
        disks: Vec<SessionDisk>,
    ) -> FreezeSession {
        let runs = kind != SessionKind::AtRest;
        FreezeSession {
            id: Uuid::new_v4(),
            domain: self.info.id,
            name: self.info.name.clone(),
            persistence: self.info.persistence,
            live: self.view.live.as_ref().filter(|_| runs).map(|xml| xml.text().to_owned()),
            inactive: self.view.config.as_ref().map(|xml| xml.text().to_owned()),
            kind,
            created: now(host),
            state,
            // Nobody is frozen who does not run.
            held: self.left.first().filter(|_| runs).map(|_| GuestHold::Frozen),
            disks,
        }
    }

    /// Puts the new job into the journal; what it takes over ends with that.
    pub(super) fn journal(&self, host: &FreezeContext<'_>, job: &FreezeSession) -> Result<()> {
        host.journal.begin(job)?;
        self.left.iter().try_for_each(|old| {
            host.journal.record(old.id, &[JournalEntry::Close(SessionOutcome::Recovered)])
        })
    }
}

fn is_only_frozen(job: &FreezeSession) -> bool {
    job.held == Some(GuestHold::Frozen) && job.disks.iter().all(|disk| disk.state == UnfreezeState::Done)
}

/// Seconds since 1970, by the clock of the files' times.
pub(super) fn now(host: &FreezeContext<'_>) -> i64 {
    i64::try_from(host.files.now().as_secs()).unwrap_or(i64::MAX)
}
