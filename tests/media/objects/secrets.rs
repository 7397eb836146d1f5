//! Where keys come from, and that they go nowhere.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use super::{PLACE, World, key_of};
use crate::common::MIB;
use crate::common::archive::backup_args;
use crate::common::run::{Outcome, exit, run, virtfold};
use crate::s3::{KEY, SECRET};

const TOKEN: &str = "session-token-that-is-secret";

fn shows_no_secret(outcome: &Outcome) {
    let all = format!("{outcome}{}", String::from_utf8_lossy(&outcome.stdout));
    for secret in [SECRET, TOKEN] {
        assert!(!all.contains(secret), "a secret was printed");
    }
}

#[test]
fn no_secret_is_printed_or_stored() {
    let world = World::new("s3-secrets");
    let image = world.image("web.qcow2", MIB);
    let run_logged = |args: &[&str], more: &[(&str, &str)]| {
        let mut command = world.command(args.iter().copied());
        let outcome = run(command.env("VIRTFOLD_LOG", "trace").envs(more.iter().copied()));
        shows_no_secret(&outcome);
        outcome
    };
    let args = backup_args(&image, PLACE, &[]);
    let done = run_logged(&args, &[]).ok();
    let archive = done.last_line();
    assert!(done.stderr.contains("TRACE"), "nothing was logged\n{done}");
    let stored = std::fs::read(world.server.object(key_of(archive))).unwrap();
    assert!(!stored.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()));
    run_logged(&["list", PLACE], &[]).ok();
    run_logged(&["verify", archive], &[]).ok();
    // Refused, for several reasons.
    run_logged(&args, &[("AWS_SECRET_ACCESS_KEY", TOKEN)]).exits(exit::FAILURE);
    run_logged(&args, &[("AWS_ACCESS_KEY_ID", "AKIAOTHER")]).exits(exit::FAILURE);
    run_logged(&args, &[("AWS_SESSION_TOKEN", TOKEN)]);
    run_logged(&args, &[("AWS_ENDPOINT_URL", "http://127.0.0.1:9")]).exits(exit::FAILURE);
}

#[test]
fn keys_come_from_a_file_that_is_its_owner_s_alone() {
    let world = World::new("s3-file");
    let image = world.image("web.qcow2", MIB);
    let file = world.scratch.join("credentials");
    let text = format!(
        "[default]\naws_access_key_id = x\naws_secret_access_key = y\n[vm]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    );
    std::fs::write(&file, text).unwrap();
    let attempt = |mode: u32, profile: &str| {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut command = virtfold(backup_args(&image, PLACE, &[]));
        command.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", world.proxy.port));
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        let outcome = run(command.env("AWS_SHARED_CREDENTIALS_FILE", &file).env("AWS_PROFILE", profile));
        shows_no_secret(&outcome);
        outcome
    };
    attempt(0o600, "vm").ok();
    attempt(0o600, "default").exits(exit::FAILURE);
    attempt(0o600, "none").exits(exit::NOT_FOUND);
    let open = attempt(0o644, "vm").exits(exit::USAGE);
    assert!(open.stderr.contains("chmod 600"), "{open}");
}

#[test]
fn keys_come_from_the_machine() {
    let world = World::new("s3-machine");
    let image = world.image("web.qcow2", MIB);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut lines = BufReader::new(client.try_clone().unwrap()).lines().map_while(Result::ok);
            let first = lines.next().unwrap_or_default();
            for _ in lines.take_while(|line| !line.is_empty()) {}
            let body = if first.contains("/api/token") {
                "the-token".to_owned()
            } else if first.contains("/security-credentials/role") {
                format!(
                    "{{\"Code\":\"Success\",\"AccessKeyId\":\"{KEY}\",\"SecretAccessKey\":\"{SECRET}\",\"Token\":\"\",\"Expiration\":\"2099-01-01T00:00:00Z\"}}"
                )
            } else {
                "role".to_owned()
            };
            let length = body.len();
            let answer =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
            client.write_all(answer.as_bytes()).unwrap_or_default();
        }
    });
    let mut command = virtfold(backup_args(&image, PLACE, &[]));
    command.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", world.proxy.port));
    command
        .env("AWS_METADATA_ENDPOINT", format!("http://127.0.0.1:{port}"))
        .env("HOME", world.scratch.path());
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SHARED_CREDENTIALS_FILE"] {
        command.env_remove(name);
    }
    let outcome = run(command.env("VIRTFOLD_LOG", "trace"));
    shows_no_secret(&outcome);
    outcome.ok();
}
