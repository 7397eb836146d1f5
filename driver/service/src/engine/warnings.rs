//! What a person should look at, and which guests nobody backs up, by oversight or on purpose.

use super::{Engine, EnginePhase};
use crate::control::{GuestCounts, Warning, WarningKind};
use virtfold_config::{IneffectiveSetting, NamedGuest};

/// How long guests may stay unknown while libvirt answers, seconds.
const UNKNOWN: i64 = 60;

impl Engine {
    /// What a person should look at.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        let about = |kind, subject: &str, sentence: &str| Warning {
            kind,
            subject: subject.to_owned(),
            sentence: sentence.to_owned(),
        };
        let mut warnings = Vec::new();
        let configuration = self.bad_configuration.iter();
        warnings.extend(configuration.map(|why| about(WarningKind::Configuration, "", why)));
        warnings.extend(self.trouble.iter().map(|why| about(WarningKind::Other, "catalog", why)));
        warnings.extend(self.unseen().map(|why| about(WarningKind::Guest, "", &why)));
        warnings.extend(self.undecided.iter().map(|what| about(WarningKind::Recovery, "", what)));
        let chores = self.chore_failures.iter();
        warnings.extend(chores.map(|((chore, job), why)| {
            about(WarningKind::Other, job, &format!("{}: {why}", chore.failure()))
        }));
        let remarks = self.remarks.iter();
        warnings.extend(remarks.map(|remark| about(WarningKind::Job, &remark.job, &sentence(remark))));
        for guest in self.guests.iter().flatten() {
            if let Some(why) = &guest.trouble {
                let sentence = format!(
                    "the guest '{}' can't be looked at, so no job with tags or disks is sure to have it: {why}",
                    guest.name
                );
                warnings.push(about(WarningKind::Guest, &guest.name, &sentence));
            } else if self.selections.of(guest.id).is_forgotten() {
                let sentence = format!("the guest '{}' is in no job: nothing backs it up", guest.name);
                warnings.push(about(WarningKind::GuestWithoutJob, &guest.name, &sentence));
            }
        }
        warnings
    }

    /// Why no backup begins though libvirt answers: the guests are not known, or not known to be in order.
    fn unseen(&self) -> Option<String> {
        if self.libvirt.error.is_some() || matches!(self.phase, EnginePhase::Stopping(_)) {
            return None;
        }
        if let Some(why) = &self.unrecovered {
            return Some(format!(
                "what earlier backups left can't be looked at, and no backup begins until it can: {why}"
            ));
        }
        let since = self.since.max(self.libvirt.since).as_second();
        let long = self.parts.clock.now().as_second() - since;
        (self.guests.is_none() && long > UNKNOWN).then(|| {
            format!("the guests could not be listed for {long} s: no schedule has an effect until then")
        })
    }

    /// The guests in numbers, where they are known.
    pub(super) fn guest_status(&self) -> Option<GuestCounts> {
        let guests = self.guests.as_ref()?;
        let left_out = guests.iter().filter(|guest| self.selections.of(guest.id).is_left_out);
        Some(GuestCounts {
            all: u64::try_from(guests.len()).unwrap_or(u64::MAX),
            left_out: left_out.map(|guest| guest.name.clone()).collect(),
        })
    }

    /// Holds the jobs against the guests; what is new is logged.
    pub(super) fn review(&mut self) {
        self.selections.update(self.guests.as_deref().unwrap_or_default(), &self.settings.jobs);
        let (Some(guests), Some(config)) = (&self.guests, &self.settings.config) else { return };
        let named: Vec<NamedGuest<'_>> =
            guests.iter().map(|guest| NamedGuest { name: &guest.name, tags: &guest.tags }).collect();
        let remarks = config.advice(Some(&named));
        for remark in remarks.iter().filter(|remark| !self.remarks.contains(remark)) {
            tracing::warn!(job = remark.job, "{}", sentence(remark));
        }
        self.remarks = remarks;
    }
}

fn sentence(remark: &IneffectiveSetting) -> String {
    format!("`{}`: {}", remark.key, remark.message)
}
