//! Archives in an object store, through the binary, against a real S3 server over HTTP: there and back, what
//! fails on the way, what is left behind, who sees what, and that no secret is printed.

mod broken;
mod copies;
mod hostile;
mod increments;
mod memory;
mod prune;
mod resume;
mod round;
mod secrets;

use std::path::Path;
use std::process::Command;

use crate::common::image::{Format, Image};
use crate::common::run::{Outcome, run, virtfold};
use crate::common::scratch::Scratch;
use crate::s3::proxy::Proxy;
use crate::s3::{BUCKET, Server, account};

/// A store with a proxy before it, and a disk to back up.
pub(crate) struct World {
    pub(crate) scratch: Scratch,
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
}

impl World {
    pub(crate) fn new(label: &str) -> Self {
        let scratch = Scratch::new(label);
        let server = Server::start(&scratch.join("store"));
        let proxy = Proxy::start(server.port);
        Self { scratch, server, proxy }
    }

    /// virtfold with this account, through the proxy.
    pub(crate) fn command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = virtfold(args);
        account(&mut command, self.proxy.port);
        command
    }

    pub(crate) fn run<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Outcome {
        run(&mut self.command(args))
    }

    /// A qcow2 with `len` bytes that don't compress.
    pub(crate) fn image(&self, name: &str, len: u64) -> Image {
        let raw = self.scratch.join("noise");
        std::fs::write(
            &raw,
            crate::common::rng::Rng::of_case(name, len).bytes(usize::try_from(len).unwrap()),
        )
        .unwrap();
        let image = Image::create(self.scratch.join(name), Format::Qcow2, "", 1 << 30);
        image.io(&[&format!("write -s {} 1M {len}", raw.display())]);
        std::fs::remove_file(raw).unwrap();
        image
    }

    /// Backs `image` up; the archive's name.
    pub(crate) fn backup(&self, image: &Image, more: &[&str]) -> String {
        let args = crate::common::archive::backup_args(image, PLACE, more);
        let done = self.run(args).ok();
        done.last_line().to_owned()
    }

    /// Restores `vda` of `archive` and holds it against `image`.
    pub(crate) fn comes_back(&self, archive: &str, image: &Image, more: &[&str]) {
        let target = self.scratch.join("back.qcow2");
        let disk = format!("vda={}", target.display());
        self.run([&["restore", archive, "--disk", &disk, "--force"], more].concat()).ok();
        same(&target, image);
    }
}

/// Where archives go.
pub(crate) const PLACE: &str = "s3://backups/vm";

/// The key of an archive that is called `name`.
pub(crate) fn key_of(name: &str) -> &str {
    name.strip_prefix(&format!("s3://{BUCKET}/")).unwrap()
}

fn same(one: &Path, image: &Image) {
    let mut compare = crate::common::run::tool("qemu-img", ["compare", "-f", "qcow2", "-F", "qcow2"]);
    run(compare.arg(one).arg(image.text())).ok();
}
