//! What the status tells, and what it does not.

use super::*;
use crate::control::Status;

const JOBS: &str = "
version: 1
media: {disk: {to: /backup}}
jobs:
  nightly: {domains: {names: [web, wbe], except: scratch}, schedule: hourly, to: disk, keep: {last: 3}}
  weekly: {domains: {names: 'w*'}, schedule: 'sun 04:00', to: disk}
  old: {enabled: false, domains: {names: attic}, schedule: daily, to: disk}
";

fn told(status: &Status) -> Vec<(WarningKind, &str, &str)> {
    let warnings = status.warnings.iter();
    warnings.map(|warning| (warning.kind, warning.subject.as_str(), warning.sentence.as_str())).collect()
}

fn configured(text: &str, guests: &[&str]) -> World {
    let config = virtfold_config::parse(text, Path::new("jobs.yaml")).unwrap();
    World::new("2026-11-27T00:30:00Z", settings(&config, &TimeZone::UTC), guests, |_, _| minutes(1))
}

#[test]
fn what_has_no_effect_is_told_and_what_is_left_out_on_purpose_is_not() {
    let world = configured(JOBS, &["web", "scratch", "attic", "db"]);
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    world.run(&mut engine, "2026-11-27T00:40:00Z");
    let status = engine.status().unwrap();
    let told = told(&status);
    assert_eq!(told.len(), 3, "{told:?}");
    let (kind, job, sentence) = told[0];
    assert_eq!((kind, job), (WarningKind::Job, "nightly"));
    assert!(sentence.contains("no domain 'wbe'; did you mean 'web'?"), "{sentence}");
    assert!(told[1].2.contains("`jobs.nightly.keep`: it has no effect on backups of web"), "{told:?}");
    assert_eq!((told[2].0, told[2].1), (WarningKind::GuestWithoutJob, "db"));
    let guests = status.guests.unwrap();
    assert_eq!((guests.all, guests.left_out.join(" ")), (4, "scratch attic".to_owned()));
    assert!(!status.jobs.iter().find(|job| job.job == "old").unwrap().enabled);
}

#[test]
fn a_guest_that_can_t_be_looked_at_is_told() {
    let world = configured(JOBS, &["web"]);
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    let mut odd = guest("odd");
    odd.trouble = Some("its XML is too large".to_owned());
    world.clock.at("2026-11-27T00:35:00Z".parse().unwrap(), Input::Guests(vec![guest("web"), odd]));
    world.run(&mut engine, "2026-11-27T00:40:00Z");
    let status = engine.status().unwrap();
    let odd: Vec<_> = told(&status).into_iter().filter(|(_, subject, _)| *subject == "odd").collect();
    assert!(
        odd.len() == 1 && odd[0].0 == WarningKind::Guest && odd[0].2.contains("XML is too large"),
        "{odd:?}"
    );
}

#[test]
fn a_recovery_that_fails_is_told_because_nothing_begins() {
    let world = configured(JOBS, &["web"]);
    world.runner.log.lock().unwrap().blind = true;
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    world.run(&mut engine, "2026-11-27T01:10:00Z");
    assert_eq!(world.events(), []);
    let status = engine.status().unwrap();
    let first = told(&status)[0];
    assert!(
        first.0 == WarningKind::Guest && first.2.contains("no backup begins until it can: it is blind"),
        "{first:?}"
    );
    world.runner.log.lock().unwrap().blind = false;
    world.run(&mut engine, "2026-11-27T02:10:00Z");
    assert_eq!(world.begins("nightly").len(), 1);
    assert!(told(&engine.status().unwrap()).iter().all(|(kind, ..)| *kind != WarningKind::Guest));
}

#[test]
fn guests_that_stay_unknown_are_told() {
    let world = configured(JOBS, &[]);
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    // The list of the world's guests is not heard.
    engine.inputs.recv().unwrap();
    world.run(&mut engine, "2026-11-27T00:30:30Z");
    assert_eq!(told(&engine.status().unwrap()), []);
    world.run(&mut engine, "2026-11-27T00:32:00Z");
    let status = engine.status().unwrap();
    assert!(told(&status)[0].2.contains("could not be listed for 120 s") && status.guests.is_none());
}

#[test]
fn a_guest_that_was_defined_anew_is_there_once() {
    let world = configured(JOBS, &["web"]);
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    world.run(&mut engine, "2026-11-27T01:30:00Z");
    let mut anew = guest("web");
    anew.id = virtfold_hypervisor::DomainId(uuid::Uuid::from_u128(77));
    world.clock.at("2026-11-27T01:40:00Z".parse().unwrap(), Input::Guests(vec![anew.clone()]));
    world.run(&mut engine, "2026-11-27T01:50:00Z");
    let status = engine.status().unwrap();
    assert_eq!(status.replaced, [guest("web").id.0]);
    let domains = status.domains;
    let names: Vec<_> = domains.iter().map(|domain| (domain.domain.as_str(), domain.uuid)).collect();
    assert_eq!(names, [("web", Some(anew.id.0))]);
}
