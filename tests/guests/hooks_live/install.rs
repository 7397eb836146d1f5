//! The hook in the lab's libvirtd.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use virtfold_hooks::spool::Spool;

use crate::lab::{Lab, run};

/// A lab whose libvirtd calls the hook.
pub(crate) struct Hooked {
    pub(crate) lab: Lab,
}

/// The hook's program, as cargo built it beside this one. A run of this test alone has it built here.
fn program() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = Path::new(env!("CARGO_BIN_EXE_virtfold")).with_file_name("virtfold-hook");
    let time = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified());
    let sources = ["hooks/src", "hooks/src/spool"].map(|folder| fs::read_dir(root.join(folder)).unwrap());
    let sources = sources.into_iter().flatten().map(|entry| time(&entry.unwrap().path()).unwrap());
    let newest = sources.chain([time(&root.join("hooks/Cargo.toml")).unwrap()]).max().unwrap();
    if time(&built).unwrap_or(SystemTime::UNIX_EPOCH) < newest {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([
            "build",
            "--locked",
            "--offline",
            "--package",
            "virtfold-hooks",
            "--bin",
            "virtfold-hook",
        ]);
        run(cargo.current_dir(root).env("CARGO_TARGET_DIR", built.parent().unwrap().parent().unwrap()));
        let touched = fs::File::options().write(true).open(&built).unwrap();
        touched.set_modified(SystemTime::now()).unwrap();
    }
    built
}

impl Hooked {
    /// Starts a lab, puts the hook where a package puts it, between scripts that write down when they are
    /// called, and has libvirtd see its first hook.
    pub(crate) fn start() -> Self {
        let lab = Lab::start();
        let folder = lab.folder().join("etc/hooks/qemu.d");
        fs::create_dir_all(&folder).unwrap();
        fs::copy(program(), folder.join("50-virtfold")).unwrap();
        for name in ["49-before", "51-after", "52-again"] {
            let log = lab.folder().join("times");
            let script = format!(
                "#!/bin/bash\nLC_ALL=C\necho \"$EPOCHREALTIME {name} $2 $3\" >> {log}\n",
                log = log.display()
            );
            fs::write(folder.join(name), script).unwrap();
            fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let hooked = Self { lab };
        hooked.spool().create().unwrap();
        hooked.lab.stop();
        hooked.lab.restart();
        hooked
    }

    /// A file of the hook's in `/run/virtfold`, as seen from here.
    pub(crate) fn run_file(&self, name: &str) -> PathBuf {
        self.lab.folder().join("hooks/run").join(name)
    }

    pub(crate) fn spool(&self) -> Spool {
        Spool::at(self.lab.folder().join("hooks/spool/events"))
    }

    /// The events in the spool, as `operation sub-operation extra`, of one guest; all are removed.
    pub(crate) fn take(&self, name: &str) -> Vec<String> {
        let batch = self.spool().read(10_000).unwrap();
        assert!(batch.quarantined.is_empty(), "{:?}", batch.quarantined);
        batch.events.iter().for_each(|event| self.spool().remove(event).unwrap());
        let words = batch.events.iter().map(|spooled| &spooled.event).filter(|event| event.object == name);
        words.map(|event| format!("{} {} {}", event.operation, event.sub_operation, event.extra)).collect()
    }

    /// Every call's operation, how long libvirt's step from the script before to the script after the hook
    /// took, and how long the next step, which has no hook in it.
    pub(crate) fn times(&self) -> Vec<Step> {
        let log = fs::read_to_string(self.lab.folder().join("times")).unwrap();
        let lines: Vec<(f64, &str, &str)> = log
            .lines()
            .map(|line| {
                let words: Vec<&str> = line.split(' ').collect();
                (words[0].parse().unwrap(), words[1], words[2])
            })
            .collect();
        let between = |from: f64, to: f64| Duration::from_secs_f64((to - from).max(0.0));
        let calls = lines.windows(3).filter(|three| three[0].1 == "49-before" && three[2].1 == "52-again");
        let step = |three: &[(f64, &str, &str)]| Step {
            operation: three[0].2.to_owned(),
            with: between(three[0].0, three[1].0),
            without: between(three[1].0, three[2].0),
        };
        calls.map(step).collect()
    }
}

/// What libvirt waited in one call.
pub(crate) struct Step {
    pub(crate) operation: String,
    pub(crate) with: Duration,
    pub(crate) without: Duration,
}
