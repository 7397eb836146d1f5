//! A service that says what it was told to say: the control protocol by hand, for the verbs that speak it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

/// Answers at `path` for as long as the program lives: `answer` gets what is asked and gives `{"answer":
/// ...}` or `{"error": ...}`. What is asked can be read from the channel.
pub(crate) fn answer_at(path: &Path, answer: impl Fn(&Value) -> Value + Send + 'static) -> Receiver<Value> {
    let listener = UnixListener::bind(path).unwrap();
    let (tell, asked) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let request: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(request["version"], 1);
            let mut reply = answer(&request["ask"]);
            reply["version"] = json!(1);
            // Not every test wants to know.
            tell.send(request["ask"].clone()).ok();
            stream.write_all(format!("{reply}\n").as_bytes()).unwrap();
        }
    });
    asked
}

/// An entry of the queue.
pub(crate) fn entry(id: i64, domain: &str, more: &Value) -> Value {
    let mut entry = json!({
        "id": id, "job": "nightly", "domain": domain, "uuid": null, "state": "waiting", "trigger": "schedule",
        "due": 1_795_744_800, "not_before": null, "waits_for": null, "started": null, "ended": null, "attempts": 0,
        "failure": null, "archives": [],
    });
    set(&mut entry, more);
    entry
}

/// A service on which everything is fine.
pub(crate) fn status(more: &Value) -> Value {
    // 2026-11-27 12:00 UTC.
    let now = 1_795_780_800;
    let measure = |at: i64| {
        json!({"job": "nightly", "archives": ["/backup/web.tar.zst"], "at": at, "seconds": 93.4, "capacity_bytes": 500 << 30_u64,
               "read_bytes": 100 << 30_u64, "archive_bytes": 42_u64 << 30, "thaw_failed": false, "frozen_ms": 170.5,
               "snapshot_ms": 12.0, "pause_ms": 44.0, "tape_underruns": null})
    };
    let domain = |name: &str| {
        json!({"domain": name, "uuid": "11111111-2222-3333-4444-555555555555", "jobs": ["nightly"],
               "last_success": measure(now - 36_000), "last_failure": null})
    };
    let mut status = json!({
        "service": {"version": "9.9.9", "pid": 812, "since": now - 100_000, "now": now, "state": "running"},
        "libvirt": {"uri": "qemu:///system", "error": null, "since": now - 99_990},
        "paused": false, "running": [], "queued": 0, "queued_since": null,
        "jobs": [{"job": "nightly", "paused": false, "domains": ["web", "database"], "next_due": now + 50_400},
                 {"job": "on-shutdown", "paused": false, "domains": ["web"], "next_due": null}],
        "domains": [domain("database"), domain("web")],
        "warnings": [],
    });
    set(&mut status, more);
    status
}

/// The same with everything that can be wrong.
pub(crate) fn bad_night() -> Value {
    let now = 1_795_780_800;
    let mut status = status(&json!({
        "paused": true,
        "libvirt": {"uri": "qemu:///system", "error": "cannot connect to libvirt: No such file or directory", "since": now - 754},
        "queued": 3, "queued_since": now - 7_300,
        "running": [{
            "entry": entry(17, "mail", &json!({"state": "running", "started": now - 1_234, "attempts": 1})),
            "progress": {"phase": "copying", "done": 12_u64 << 30, "total": 100_u64 << 30, "seconds": 1_200},
        }],
        "warnings": [{"kind": "guest-without-job", "subject": "new", "sentence": "guest 'new' is in no job"}],
    }));
    status["jobs"][1]["paused"] = json!(true);
    status["domains"][1]["last_failure"] = json!({
        "at": now - 3_700, "job": "nightly", "kind": "no-space", "sentence": "cannot write '/backup/.web.tar.zst.partial': No space left on device",
        "hint": "free some space below '/backup'",
    });
    let mut fresh = status["domains"][0].clone();
    fresh["domain"] = json!("mail");
    fresh["last_success"] = Value::Null;
    status["domains"].as_array_mut().unwrap().insert(1, fresh);
    status
}

fn set(value: &mut Value, more: &Value) {
    for (key, new) in more.as_object().unwrap() {
        assert!(value.get(key).is_some(), "there is no field '{key}'");
        value[key] = new.clone();
    }
}
