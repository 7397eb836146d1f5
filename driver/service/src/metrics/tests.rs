use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::control::fake_api::{FakeControlApi, status};
use virtfold_backup::metrics::names::{ALL, Family, MetricKind};
use virtfold_base::error::ErrorKind;

fn labels(status: &Status) -> DomainLabels<'_> {
    DomainLabels { domain: &status.domains[0].domain, uuid: status.domains[0].uuid.unwrap() }
}

/// A service on which everything there is to tell has happened.
fn busy() -> (Metrics, Status) {
    let (metrics, status) = (Metrics::default(), status());
    let measure = &status.domains[0].last_success.as_ref().unwrap().measure;
    metrics.run_ended(&RunMetrics { labels: labels(&status), measure: Some(measure) });
    metrics.run_ended(&RunMetrics { labels: labels(&status), measure: Some(measure) });
    metrics.run_ended(&RunMetrics { labels: labels(&status), measure: None });
    (metrics, status)
}

/// The metrics of a page: name, kind, names of labels.
fn exported(page: &str) -> BTreeSet<(String, &'static str, Vec<String>)> {
    let mut found = BTreeSet::new();
    let mut kind = "";
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            kind = if rest.ends_with(" counter") { "counter" } else { "gauge" };
        } else if !line.starts_with('#') {
            let (series, _) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty());
            let labels = labels.map(|label| label.split_once('=').unwrap().0.to_owned()).collect();
            found.insert((name.to_owned(), kind, labels));
        }
    }
    found
}

fn declared(family: &Family) -> (String, &'static str, Vec<String>) {
    let kind = if family.kind == MetricKind::Counter { "counter" } else { "gauge" };
    let mut labels: Vec<String> = family.labels.iter().map(|&label| label.to_owned()).collect();
    labels.sort_unstable();
    (family.name.to_owned(), kind, labels)
}

#[test]
fn the_page_has_what_is_declared_and_nothing_else() {
    let (metrics, status) = busy();
    let page = metrics.page(&status).unwrap();
    // What verifications came to is in their own files.
    let here = ALL.iter().filter(|family| !family.name.starts_with("virtfold_verify_"));
    let all: BTreeSet<_> = here.map(|family| declared(family)).collect();
    assert_eq!(exported(&page), all);
}

#[test]
fn values_are_those_of_the_status_and_of_the_runs() {
    let (metrics, status) = busy();
    let page = metrics.page(&status).unwrap();
    let web = "{domain=\"web\",uuid=\"00000000-0000-0000-0000-000000000008\"}";
    for line in [
        &format!("virtfold_backup_last_success_timestamp_seconds{web} 15"),
        &format!("virtfold_backup_last_success_age_seconds{web} 5"),
        &format!("virtfold_backup_last_folded_ratio{web} 0.9"),
        &format!("virtfold_backup_last_failure_timestamp_seconds{web} 1001"),
        &format!("virtfold_backup_successes_total{web} 2"),
        &format!("virtfold_backup_failures_total{web} 1"),
        "virtfold_backup_read_bytes_total 20",
        "virtfold_backup_archived_bytes_total 10",
        "virtfold_tape_underruns_total 4",
        "virtfold_queue_oldest_age_seconds 8",
        "virtfold_libvirt_up 1",
        "virtfold_guests_without_job 1",
        "virtfold_warnings{kind=\"guest-without-job\"} 1",
        "virtfold_warnings{kind=\"events\"} 0",
        "virtfold_job_paused{name=\"nightly\"} 1",
        "virtfold_build_info{version=\"1\"} 1",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
}

#[test]
fn a_guest_that_was_given_up_is_not_shown() {
    let (metrics, mut status) = busy();
    status.domains[0].jobs.clear();
    let page = metrics.page(&status).unwrap();
    assert!(page.contains("virtfold_libvirt_up 1\n") && !page.contains("domain="), "{page}");
    let directory = tempfile::tempdir().unwrap();
    metrics.write(&status, directory.path()).unwrap();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    // A service that has not reached libvirt since its start knows of no job's guests, and of old backups.
    status.guests = None;
    assert!(metrics.page(&status).unwrap().contains("domain=\"web\""));
}

/// The alert on an old backup reads the files, too.
#[test]
fn the_files_of_a_guest_that_is_backed_up_no_more_go_once() {
    let (metrics, mut status) = busy();
    let directory = tempfile::tempdir().unwrap();
    let count = || std::fs::read_dir(directory.path()).unwrap().count();
    metrics.write(&status, directory.path()).unwrap();
    assert_eq!(count(), 3);
    let jobs = std::mem::take(&mut status.domains[0].jobs);
    metrics.write(&status, directory.path()).unwrap();
    assert_eq!(count(), 1);
    // What somebody else writes from then on is left alone; and a guest that is in a job again has its files
    // again.
    std::fs::write(directory.path().join(format!("virtfold-{}.prom", status.domains[0].uuid.unwrap())), "x")
        .unwrap();
    metrics.write(&status, directory.path()).unwrap();
    assert_eq!(count(), 2);
    status.domains[0].jobs = jobs;
    metrics.write(&status, directory.path()).unwrap();
    assert_eq!(count(), 3);
    // One whose name another guest has now is no more.
    status.replaced.push(status.domains[0].uuid.unwrap());
    status.domains.clear();
    metrics.write(&status, directory.path()).unwrap();
    assert_eq!(count(), 1);
}

#[test]
fn warnings_have_the_names_that_programs_see() {
    for kind in WarningKind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
}

#[test]
fn no_metric_is_in_two_files_and_what_has_not_changed_is_not_written() {
    let (metrics, mut status) = busy();
    let directory = tempfile::tempdir().unwrap();
    let files = || {
        let mut files: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files
    };
    metrics.write(&status, directory.path()).unwrap();
    let [failure, success, service] = &files()[..] else { panic!("{:?}", files()) };
    let names: Vec<_> =
        files().iter().flat_map(|file| exported(&std::fs::read_to_string(file).unwrap())).collect();
    let distinct: BTreeSet<_> = names.iter().cloned().collect();
    assert_eq!(names.len(), distinct.len());
    assert_eq!(distinct, exported(&metrics.page(&status).unwrap()));
    for file in [failure, success, service] {
        std::fs::write(file, "old").unwrap();
    }
    status.domains[0].last_failure.as_mut().unwrap().at += 1;
    metrics.write(&status, directory.path()).unwrap();
    let is_old = |file| std::fs::read(file).unwrap() == b"old";
    assert_eq!((is_old(failure), is_old(success), is_old(service)), (false, true, false));
    let nowhere = metrics.write(&status, &directory.path().join("nowhere")).unwrap_err();
    assert_eq!(nowhere.kind(), ErrorKind::NotFound);
}

fn exporter() -> Exporter {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    Exporter::start(any, Arc::new(busy().0), Arc::new(FakeControlApi::default())).unwrap()
}

/// Sends bytes and reads until the end.
fn send(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(request).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_page_is_served_and_nothing_else() {
    let exporter = exporter();
    let answer = send(exporter.address(), b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    let (metrics, status) = busy();
    assert_eq!(body, metrics.page(&status).unwrap());
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(MAX_REQUEST));
    let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "X: x\r\n".repeat(65));
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", "404 "),
        ("GET /metrics/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", "404 "),
        ("GET http://elsewhere/metrics HTTP/1.1\r\nHost: 127.0.0.1:9758\r\n\r\n", "404 "),
        ("POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello", "405 "),
        ("hello\r\n\r\n", "400 "),
        ("GET /metrics", "400 "),
        ("", "400 "),
        (&long, "431 "),
        (&many, "431 "),
    ] {
        let answer = send(exporter.address(), request.as_bytes());
        let shown: String = request.chars().take(60).collect();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{shown}: {answer}");
    }
}

/// The longest head that is read.
const MAX_REQUEST: usize = 8 << 10;

#[test]
fn who_asks_for_nothing_is_not_waited_for_and_an_end_is_one() {
    let exporter = exporter();
    let mut silent = TcpStream::connect(exporter.address()).unwrap();
    silent.write_all(b"GET /met").unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut rest = Vec::new();
    // However it is closed, it is.
    let closed = silent.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{closed:?}");
    let address = exporter.address();
    drop(exporter);
    assert!(TcpStream::connect(address).is_err());
}

/// A page of the web whose name leads here (DNS rebinding) has its browser send that name.
#[test]
fn a_request_for_another_host_is_not_answered() {
    let exporter = exporter();
    for (host, status) in [
        ("Host: localhost\r\n", "200 "),
        ("host: LOCALHOST:9758\r\n", "200 "),
        ("Host: 127.0.0.1:9758\r\n", "200 "),
        ("Host: [::1]:9758\r\n", "200 "),
        ("Host: attacker.example\r\n", "421 "),
        ("Host: attacker.example:9758\r\n", "421 "),
        ("Host: localhost.attacker.example\r\n", "421 "),
        ("Host: 127.0.0.1.attacker.example\r\n", "421 "),
        ("Host: [::1].attacker.example\r\n", "421 "),
        ("Host: localhost:x\r\n", "421 "),
        ("Host: localhost\r\nHost: attacker.example\r\n", "421 "),
        ("Host:\r\n", "421 "),
        ("", "421 "),
    ] {
        let answer = send(exporter.address(), format!("GET /metrics HTTP/1.1\r\n{host}\r\n").as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{host}: {answer}");
    }
    assert!(send(exporter.address(), b"GET /metrics HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200 "));
}

/// Whoever may connect can hold connections open for nothing, from one address of this host or from many.
#[test]
fn who_asks_for_nothing_keeps_nobody_out() {
    let exporter = exporter();
    let from = |source: [u8; 4]| {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&socket, &SocketAddr::from((source, 0))).unwrap();
        connect(&socket, &exporter.address()).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.write_all(b"GET /met").unwrap();
        stream
    };
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for sources in [vec![[127, 0, 0, 1]; 40], (2..42).map(|last| [127, 0, 0, last]).collect()] {
        let held: Vec<_> = sources.into_iter().map(from).collect();
        for _ in 0..3 {
            let answer = send(exporter.address(), request);
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
        drop(held);
    }
}

#[test]
fn others_than_this_host_are_not_served() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9177"] {
        let metrics = Arc::new(Metrics::default());
        let error = Exporter::start(address.parse().unwrap(), metrics, Arc::new(FakeControlApi::default()))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{address}");
    }
}
