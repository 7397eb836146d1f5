//! The service's unit.

use std::time::Duration;

use crate::ROOT;
use crate::common::run::{run, tool};

fn unit() -> String {
    std::fs::read_to_string(format!("{ROOT}/packaging/virtfold.service")).unwrap()
}

fn value(key: &str) -> String {
    let unit = unit();
    let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {key}")).to_owned()
}

#[test]
fn the_units_exposure_is_ok_or_better() {
    let path = format!("{ROOT}/packaging/virtfold.service");
    let said = run(&mut tool(
        "systemd-analyze",
        ["security", "--no-pager", "--offline=true", "--threshold=49", &path],
    ));
    let said = said.ok();
    let last = said.last_line();
    println!("{last}");
    assert!(last.contains("Overall exposure level") && last.contains(" OK"), "{last}");
}

#[test]
fn the_service_gets_the_time_that_the_configuration_gives_it() {
    let minutes: u64 = value("TimeoutStopSec").trim_end_matches("min").parse().unwrap();
    let usual = virtfold_config::Config::default().service.stop_timeout.get();
    assert!(Duration::from_secs(60 * minutes) > usual + Duration::from_secs(30), "{minutes} min, {usual:?}");
}

/// A guard that is killed with its driver lets no guest go.
#[test]
fn guards_are_not_killed_with_the_service() {
    assert_eq!(value("KillMode"), "process");
}
