//! A real S3 server (`s3s-fs`) over HTTP on loopback, as a process of its own: this test binary again. And a
//! proxy before it that fails as networks and stores do.

#![allow(dead_code, reason = "each test program uses a part of this")]

pub(crate) mod proxy;

use std::fs;
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;

const ROLE: &str = "VIRTFOLD_TEST_S3_ROOT";
/// The bucket that is there.
pub(crate) const BUCKET: &str = "backups";
/// The account's key.
pub(crate) const KEY: &str = "AKIATESTACCOUNT";
/// Its secret, which nothing may print.
pub(crate) const SECRET: &str = "hunter2-wJalrXUtnFEMI-K7MDENG";

/// A server; ends with its owner.
pub(crate) struct Server {
    /// The process, where it is this one's child.
    child: Option<Child>,
    root: PathBuf,
    pub(crate) port: u16,
}

impl Server {
    /// Starts one that keeps its objects in `root`.
    pub(crate) fn start(root: &Path) -> Self {
        fs::create_dir_all(root.join(BUCKET)).unwrap();
        let port_file = root.with_extension("port");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "s3::part_of_the_server", "--nocapture"]).env(ROLE, root);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut server = Self { child: Some(child), root: root.to_owned(), port: 0 };
        let start = Instant::now();
        while server.port == 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "the S3 server does not start");
            std::thread::sleep(Duration::from_millis(10));
            let told = fs::read_to_string(&port_file).ok();
            server.port = told.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        }
        fs::remove_file(&port_file).unwrap();
        server
    }

    /// One that another process has started.
    pub(crate) fn there(root: &Path, port: u16) -> Self {
        Self { child: None, root: root.to_owned(), port }
    }

    /// The file that has the object `key`.
    pub(crate) fn object(&self, key: &str) -> PathBuf {
        self.root.join(BUCKET).join(key)
    }

    /// All keys, sorted.
    pub(crate) fn keys(&self) -> Vec<String> {
        let bucket = self.root.join(BUCKET);
        let mut folders = vec![bucket.clone()];
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push(path.strip_prefix(&bucket).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        found.sort();
        found
    }

    /// What uploads that are not complete have on the server.
    pub(crate) fn unfinished(&self) -> Vec<String> {
        let names =
            fs::read_dir(&self.root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.starts_with(".upload")).collect();
        names.sort();
        names
    }
}

impl Server {
    /// Waits until it has written what was on its way when a client was killed: a part that is written while
    /// its upload is aborted stays.
    pub(crate) fn wait_until_still(&self) {
        let length = |name: &String| fs::metadata(self.root.join(name)).map_or(0, |found| found.len());
        let look = || self.unfinished().into_iter().map(|name| (length(&name), name)).collect::<Vec<_>>();
        let mut before = look();
        loop {
            std::thread::sleep(std::time::Duration::from_millis(500));
            let now = look();
            if now == before {
                return;
            }
            before = now;
        }
    }

    /// Kills it.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Lets `command` use the store at `port`.
pub(crate) fn account(command: &mut Command, port: u16) -> &mut Command {
    for name in ["AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_SESSION_TOKEN", "AWS_REGION"] {
        command.env_remove(name);
    }
    command
        .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}"))
        .env("AWS_ACCESS_KEY_ID", KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
}

/// Not a test: the server's process.
#[test]
fn part_of_the_server() {
    serve_if_asked();
}

/// Is the server, if this process was started as that.
pub(crate) fn serve_if_asked() {
    if let Some(root) = std::env::var_os(ROLE) {
        serve(Path::new(&root));
    }
}

/// Serves until standard input ends: with the process that started it.
fn serve(root: &Path) {
    std::thread::spawn(|| {
        let mut rest = Vec::new();
        drop(std::io::stdin().read_to_end(&mut rest));
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut builder = S3ServiceBuilder::new(FileSystem::new(root).unwrap());
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = builder.build();
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let port_file = root.with_extension("port");
        fs::write(port_file.with_extension("new"), port.to_string()).unwrap();
        fs::rename(port_file.with_extension("new"), port_file).unwrap();
        loop {
            let Ok((socket, _)) = listener.accept().await else { continue };
            let service = service.clone();
            tokio::spawn(async move {
                let http = Builder::new(TokioExecutor::new());
                drop(http.serve_connection(TokioIo::new(socket), service).await);
            });
        }
    });
}
