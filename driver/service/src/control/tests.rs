use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::fake_api::{FakeControlApi, entry, status};
use super::*;
use virtfold_base::error::ErrorKind;

/// A server over a fake desk, in a directory of its own.
struct Rig {
    desk: Arc<FakeControlApi>,
    server: Option<Server>,
    path: PathBuf,
    _directory: TempDir,
}

impl Rig {
    fn new() -> Self {
        Self::with(Limits { idle: Duration::from_secs(60), ..Limits::default() })
    }

    fn with(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/control.sock");
        let desk = Arc::new(FakeControlApi::default());
        let server = Server::start(&path, Arc::clone(&desk) as Arc<dyn ControlApi>, limits).unwrap();
        Self { desk, server: Some(server), path, _directory: directory }
    }

    fn client(&self) -> Client {
        Client::new(&self.path)
    }

    fn talk(&self) -> Talk {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Talk { answers: BufReader::new(stream.try_clone().unwrap()), stream }
    }

    /// What is answered to one line on a connection of its own.
    fn say(&self, line: &[u8]) -> String {
        let mut talk = self.talk();
        talk.stream.write_all(line).unwrap();
        talk.stream.shutdown(std::net::Shutdown::Write).unwrap();
        talk.answer()
    }
}

/// A connection, by hand.
struct Talk {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Talk {
    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line
    }

    /// Whether the service has closed it.
    fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        self.answers.read_to_end(&mut rest).unwrap();
        rest.is_empty()
    }
}

#[test]
fn a_client_is_a_desk() {
    let rig = Rig::new();
    let client = rig.client();
    assert_eq!(client.status().unwrap(), status());
    assert_eq!(client.queue().unwrap(), [entry(1), entry(2)]);
    assert_eq!(client.entry(EntryId(1)).unwrap(), entry(1));
    let error = client.entry(EntryId(2)).unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str(), error.hint()),
        (ErrorKind::NotFound, "there is none", Some("look at the list"))
    );
    assert_eq!(client.run("nightly", Some("we\nb")).unwrap(), [EntryId(1), EntryId(i64::MAX)]);
    assert_eq!(client.run("none", None).unwrap_err().kind(), ErrorKind::NotFound);
    client.pause(None).unwrap();
    client.pause(Some("a")).unwrap();
    client.resume(Some("b")).unwrap();
    client.cancel(EntryId(-5)).unwrap();
    let error = client.reload().unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Io, "line 3 is wrong: a tab"));
    assert_eq!(error.hint(), Some("use spaces"));
    let asked = [
        "run nightly Some(\"we\\nb\")",
        "run none None",
        "pause None",
        "pause Some(\"a\")",
        "resume Some(\"b\")",
        "cancel -5",
        "reload",
    ];
    assert_eq!(rig.desk.asked(), asked);
}

#[test]
fn requests_follow_one_another_on_a_connection() {
    let rig = Rig::new();
    let mut talk = rig.talk();
    let lines =
        "{\"version\":1,\"ask\":{\"pause\":{}}}\nrubbish\n{\"version\":1,\"ask\":{\"cancel\":{\"id\":4}}}\n";
    talk.stream.write_all(lines.as_bytes()).unwrap();
    assert_eq!(talk.answer(), "{\"version\":1,\"answer\":\"done\"}\n");
    assert!(talk.answer().starts_with("{\"version\":1,\"error\":{\"kind\":\"usage\""));
    assert_eq!(talk.answer(), "{\"version\":1,\"answer\":\"done\"}\n");
    assert_eq!(rig.desk.asked(), ["pause None", "cancel 4"]);
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let rig = Rig::new();
    let usage = [
        "",
        "null",
        "{}",
        "[1]",
        "{\"version\":1}",
        "{\"version\":1,\"ask\":\"pause\"}",
        "{\"version\":1,\"ask\":{\"pause\":{\"job\":\"a\",\"until\":5}}}",
        "{\"version\":1,\"ask\":{\"pause\":{}},\"by\":\"me\"}",
        "{\"version\":1,\"ask\":{\"pause\":{\"job\":\"a\",\"job\":\"b\"}}}",
        "{\"version\":1,\"ask\":{\"pause\":{}},\"ask\":{\"pause\":{}}}",
        "{\"version\":1,\"ask\":{\"pause\":{},\"resume\":{}}}",
        "{\"version\":1,\"ask\":{\"pause\":{\"job\":\"\"}}}",
        "{\"version\":1,\"ask\":{\"cancel\":{\"id\":9223372036854775808}}}",
        "{\"version\":1,\"ask\":{\"cancel\":{\"id\":1.5}}}",
        "{\"version\":1,\"ask\":{\"explode\":{}}}",
        "{\"version\":1,\"ask\":{\"pause\":{}}} {\"version\":1,\"ask\":{\"pause\":{}}}",
    ];
    for line in usage {
        let answer = rig.say(format!("{line}\n").as_bytes());
        assert!(answer.starts_with("{\"version\":1,\"error\":{\"kind\":\"usage\""), "{line}: {answer}");
    }
    let long_name = format!("{{\"version\":1,\"ask\":{{\"pause\":{{\"job\":\"{}\"}}}}}}", "x".repeat(1025));
    assert!(rig.say(long_name.as_bytes()).contains("1 to 1024 bytes"));
    assert!(rig.say(b"\xff\xfe\n").contains("\"usage\""));
    assert!(rig.say(&[b'['; 100_000]).contains("\"usage\""));
    let other = rig.say(b"{\"version\":2,\"ask\":{\"pause\":{\"gently\":true}}}\n");
    assert!(other.contains("\"unsupported\"") && other.contains("version 2"), "{other}");
    assert_eq!(rig.desk.asked(), [""; 0]);
}

#[test]
fn a_line_that_is_too_long_ends_the_connection() {
    let rig = Rig::new();
    let mut talk = rig.talk();
    // Without a line feed at its end: exactly what is held, so that nothing is unread when the service
    // closes.
    talk.stream.write_all(&vec![b' '; MAX_REQUEST]).unwrap();
    assert!(talk.answer().contains("longer than 1 MiB"));
    assert!(talk.is_closed());
    // The longest that is allowed.
    let mut longest = b"{\"version\":1,\"ask\":{\"pause\":{}}}".to_vec();
    longest.resize(MAX_REQUEST - 1, b' ');
    longest.push(b'\n');
    assert_eq!(rig.say(&longest), "{\"version\":1,\"answer\":\"done\"}\n");
}

#[test]
fn one_connection_too_many_is_turned_away() {
    let rig = Rig::with(Limits { clients: 2, idle: Duration::from_secs(60) });
    let mut held: Vec<_> = (0..2).map(|_| rig.talk()).collect();
    for talk in &mut held {
        // Only an answer shows that it is being served.
        talk.stream.write_all(b"{\"version\":1,\"ask\":\"queue\"}\n").unwrap();
        assert!(talk.answer().contains("\"queue\""));
    }
    let error = rig.client().status().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error:?}");
    drop(held.pop());
    let free = std::time::Instant::now() + Duration::from_secs(60);
    while let Err(error) = rig.client().status() {
        assert!(error.kind() == ErrorKind::InUse && std::time::Instant::now() < free, "{error:?}");
    }
}

#[test]
fn who_says_nothing_is_not_waited_for() {
    let rig = Rig::with(Limits { idle: Duration::from_millis(300), ..Limits::default() });
    let mut silent = rig.talk();
    let mut half = rig.talk();
    half.stream.write_all(b"{\"version\":1,").unwrap();
    assert!(silent.is_closed() && half.is_closed());
}

#[test]
fn who_does_not_take_answers_is_not_waited_for() {
    let rig = Rig::with(Limits { clients: 1, idle: Duration::from_millis(300) });
    let mut talk = rig.talk();
    talk.stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    // Requests until neither side's memory takes more; then the service gives up, and the pipe is broken.
    let many = b"{\"version\":1,\"ask\":\"status\"}\n".repeat(1000);
    let error = loop {
        if let Err(error) = talk.stream.write_all(&many) {
            break error;
        }
    };
    assert!(
        matches!(error.kind(), std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset),
        "{error}"
    );
}

#[test]
fn a_defect_in_the_desk_costs_one_connection() {
    let rig = Rig::new();
    let error = rig.client().run("panic", None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    assert_eq!(rig.client().status().unwrap(), status());
}

#[test]
fn an_end_does_not_wait_for_connections_and_takes_the_socket_along() {
    let mut rig = Rig::with(Limits { idle: Duration::from_secs(3600), ..Limits::default() });
    let mut talk = rig.talk();
    talk.stream.write_all(b"{\"version\":1,\"ask\":\"queue\"}\n").unwrap();
    assert!(talk.answer().contains("\"queue\""));
    drop(rig.server.take());
    assert!(talk.is_closed());
    assert!(!rig.path.exists());
}

#[test]
fn the_socket_is_for_root_and_the_group() {
    let group = nix::unistd::Group::from_name("daemon").unwrap().expect("every Debian has the group daemon");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/control.sock");
    let desk = Arc::new(FakeControlApi::default());
    let _server = Server::start_for(&path, "daemon", desk, Limits::default()).unwrap();
    let socket = path.metadata().unwrap();
    assert_eq!(socket.permissions().mode() & 0o7777, 0o660);
    assert_eq!(path.parent().unwrap().metadata().unwrap().permissions().mode() & 0o7777, 0o755);
    let is_root = nix::unistd::Uid::effective().is_root();
    assert_eq!(socket.gid() == group.gid.as_raw(), is_root);
    let left: Vec<_> =
        std::fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "the socket and the lock: {left:?}");
}

#[test]
fn a_socket_left_behind_is_replaced_and_a_living_one_is_not() {
    let rig = Rig::new();
    let desk = || Arc::new(FakeControlApi::default());
    let second = Server::start(&rig.path, desk(), Limits::default()).unwrap_err();
    assert_eq!(second.kind(), ErrorKind::InUse, "{second:?}");
    assert_eq!(rig.client().status().unwrap(), status());

    let directory = tempfile::tempdir().unwrap();
    let stale = directory.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    let _server = Server::start(&stale, desk(), Limits::default()).unwrap();
    assert_eq!(Client::new(&stale).status().unwrap(), status());

    let file = directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert_eq!(Server::start(&file, desk(), Limits::default()).unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn where_no_service_is_the_error_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let stale = directory.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    for path in [directory.path().join("none.sock"), stale] {
        let error = Client::new(&path).status().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        let text = format!("no service answers at {}: is virtfold.service running?", path.display());
        assert_eq!(error.to_string(), text);
    }
}

/// One answer to whoever asks.
fn answering(path: &Path, answer: &'static [u8]) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = String::new();
        BufReader::new(&stream).read_line(&mut request).unwrap();
        stream.write_all(answer).unwrap();
    })
}

#[test]
fn a_client_believes_no_nonsense() {
    let directory = tempfile::tempdir().unwrap();
    let cases: [(&[u8], ErrorKind); 7] = [
        (b"", ErrorKind::Refused),
        (b"hello\n", ErrorKind::Io),
        (b"{\"version\":2,\"answer\":\"done\"}\n", ErrorKind::Unsupported),
        (b"{\"version\":1}\n", ErrorKind::Io),
        (b"{\"version\":1,\"answer\":{\"queue\":[]}}\n", ErrorKind::Io),
        (
            b"{\"version\":1,\"answer\":\"done\",\"error\":{\"kind\":\"io\",\"sentence\":\"x\"}}\n",
            ErrorKind::Io,
        ),
        (
            b"{\"version\":1,\"error\":{\"kind\":\"locked\",\"sentence\":\"x\",\"new\":1}}\n",
            ErrorKind::Locked,
        ),
    ];
    for (index, (answer, kind)) in cases.into_iter().enumerate() {
        let path = directory.path().join(index.to_string());
        let server = answering(&path, answer);
        assert_eq!(Client::new(&path).pause(None).unwrap_err().kind(), kind, "{index}");
        server.join().unwrap();
    }
    let path = directory.path().join("later");
    let server = answering(&path, b"{\"version\":1,\"answer\":\"done\",\"since\":7}\n");
    Client::new(&path).pause(None).expect("a field that a later service adds is passed over");
    server.join().unwrap();
}

/// What the specification shows is what is spoken.
#[test]
fn the_specification_s_examples_hold() {
    let text = include_str!("PROTOCOL.md");
    let mut asks = 0;
    for piece in text.lines().filter(|line| line.starts_with("| ")).filter_map(|row| row.split('|').nth(1)) {
        for example in piece.split('`').skip(1).step_by(2).filter(|code| *code != "ask") {
            let line = format!("{{\"version\":{VERSION},\"ask\":{example}}}");
            Request::parse(line.as_bytes()).unwrap_or_else(|error| panic!("{example}: {error:?}"));
            asks += 1;
        }
    }
    assert_eq!(asks, 11);
    let error = text.lines().find(|line| line.trim_start().starts_with("{\"version\":1,\"error\"")).unwrap();
    assert_eq!(Response::parse(error.trim().as_bytes()).unwrap_err().kind(), ErrorKind::NotFound);
    for kind in [ErrorKind::NoSpace, ErrorKind::BadImage, ErrorKind::Locked, ErrorKind::Internal] {
        let name = serde_json::to_string(&kind).unwrap().replace('"', "`");
        assert!(text.contains(&name), "{name}");
    }
}
