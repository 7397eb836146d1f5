//! The way into an object store: a backup of an image, against a plain multipart upload of the same archive's
//! bytes out of memory that is already filled; same server, same size and number of parts on their way, in
//! turn, in one run.
//!
//! `cargo bench --bench object` prints the table; `-- --rounds N --gib N` changes the rounds and the size.
//! The server keeps its objects in RAM (`/dev/shm`), so that no disk hides what the way costs; three times
//! the size must be free there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark fails by panicking")]
#![allow(missing_docs, reason = "a benchmark has no public items")]

#[path = "../../tests/common/s3/mod.rs"]
mod s3;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use object_store::aws::AmazonS3Builder;
use object_store::multipart::MultipartStore;
use object_store::{ObjectStoreExt, PutPayload};
use tokio::task::JoinSet;

/// Bytes of a part, and how many are on their way: as in `driver/medium/src/object/parts.rs`.
const PART: usize = 6 << 20;
const IN_FLIGHT: usize = 3;

struct Rig {
    folder: tempfile::TempDir,
    server: s3::Server,
    image: PathBuf,
}

impl Rig {
    fn new(gib: usize) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let server = s3::Server::start(&folder.path().join("store"));
        let image = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-object.raw");
        let mut state = 1_u64;
        let mut noise = vec![0_u8; gib << 30];
        for word in noise.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&(state ^ state >> 29).to_le_bytes());
        }
        std::fs::write(&image, noise).unwrap();
        Self { folder, server, image }
    }

    fn backup(&self) -> (f64, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_virtfold"));
        let image = self.image.to_str().unwrap();
        command.args(["backup", "--image", image, "--format", "raw", "--to", "s3://backups/bench"]);
        s3::account(command.args(["--compress", "none"]), self.server.port);
        let start = Instant::now();
        let done = command.output().unwrap();
        let seconds = start.elapsed().as_secs_f64();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        (seconds, String::from_utf8(done.stdout).unwrap().lines().last().unwrap().to_owned())
    }

    /// The bytes as a program would upload them that has nothing else to do.
    fn plain(&self, bytes: &[u8]) -> f64 {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let store = AmazonS3Builder::new()
            .with_endpoint(format!("http://127.0.0.1:{}", self.server.port))
            .with_allow_http(true)
            .with_bucket_name(s3::BUCKET)
            .with_access_key_id(s3::KEY)
            .with_secret_access_key(s3::SECRET)
            .build()
            .unwrap();
        let key = object_store::path::Path::from("plain");
        let parts: Vec<PutPayload> = bytes.chunks(PART).map(|part| part.to_vec().into()).collect();
        let start = Instant::now();
        runtime.block_on(async {
            let id = store.create_multipart(&key).await.unwrap();
            let mut sending = JoinSet::new();
            let mut sent = Vec::new();
            for (number, part) in parts.into_iter().enumerate() {
                if sending.len() >= IN_FLIGHT {
                    sent.push(sending.join_next().await.unwrap().unwrap());
                }
                let (store, key, id) = (store.clone(), key.clone(), id.clone());
                sending
                    .spawn(async move { (number, store.put_part(&key, &id, number, part).await.unwrap()) });
            }
            sent.extend(sending.join_all().await);
            sent.sort_by_key(|(number, _)| *number);
            let ids = sent.into_iter().map(|(_, id)| id).collect();
            store.complete_multipart(&key, &id, ids).await.unwrap();
        });
        let seconds = start.elapsed().as_secs_f64();
        runtime.block_on(store.delete(&key)).unwrap();
        seconds
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        std::fs::remove_file(&self.image).unwrap();
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    s3::serve_if_asked();
    let words: Vec<String> = std::env::args().skip(1).collect();
    if !words.iter().any(|word| word == "--bench") {
        eprintln!("this is a benchmark: run it with 'cargo bench --bench object'");
        return;
    }
    let number = |name: &str, usual: usize| {
        words.windows(2).find(|pair| pair[0] == name).map_or(usual, |pair| pair[1].parse().unwrap())
    };
    let (rounds, gib) = (number("--rounds", 5), number("--gib", 1));
    let rig = Rig::new(gib);
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    // The first round warms up.
    for round in 0..=rounds {
        let (seconds, name) = rig.backup();
        let object = rig.server.object(name.strip_prefix("s3://backups/").unwrap());
        let bytes = std::fs::read(&object).unwrap();
        std::fs::remove_file(object).unwrap();
        let other = rig.plain(&bytes);
        if round > 0 {
            ours.push(seconds);
            plain.push(other);
        }
    }
    // Of each pair: both have the same neighbours on the machine.
    let rate = median(plain.iter().zip(&ours).map(|(plain, ours)| plain / ours).collect());
    let (ours, plain) = (median(ours), median(plain));
    println!("{gib} GiB into a store in RAM, medians of {rounds} rounds ({})", rig.folder.path().display());
    println!("| backup, s | plain upload, s | rate against it (target 0.9) |\n|---:|---:|---:|");
    println!("| {ours:.2} | {plain:.2} | {rate:.2} |");
}
