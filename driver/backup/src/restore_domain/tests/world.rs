//! A host for the tests: a simulated hypervisor of which single answers are others, and real files in a
//! folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::super::*;
use crate::destinations::Destinations;
use crate::increment::{ChangeHint, ParentChoice};
use crate::options::BackupOptions;
use crate::resume::StateDirectories;
use crate::session::{BackupInput, BackupSession, InputDisk};
use virtfold_archive::crypt::Identities;
use virtfold_archive::manifest::BackupSubject;
use virtfold_archive::sign::SigningKey;
use virtfold_archive::stream::Compression;
use virtfold_archive::writer::Attachment;
use virtfold_base::error::ErrorKind;
use virtfold_catalog::Catalog;
use virtfold_hypervisor::call_error::{ErrorOrigin, HypervisorError, code};
use virtfold_hypervisor::domain_xml::DomainXml;
use virtfold_hypervisor::host_files::LocalFiles;
use virtfold_hypervisor::simulated::Simulated;
use virtfold_hypervisor::{
    Activity, BlockJob, BlockJobEnd, Checkpoint, CheckpointParts, CheckpointRequest, CommitRequest,
    DomainEvent, DomainId, DomainInfo, DomainState, LiftedDenials, QemuDisk, SnapshotRequest, StartMode,
    XmlView,
};
use virtfold_image::{DiskImage, OpenOptions};
use virtfold_medium::{FileMedium, Location};

pub(super) const UUID: &str = "3b51a0a6-3c5a-4c1e-9d0b-2b4f6f1f8f11";
pub(super) const MAC: &str = "52:54:00:aa:bb:01";

/// A hypervisor of which single answers are others.
#[derive(Debug)]
pub(super) struct Odd {
    pub(super) inner: Simulated,
    pub(super) refuse_define: bool,
    pub(super) saved: Option<String>,
    pub(super) activity: Activity,
}

macro_rules! hand_on {
    ($($call:ident($($name:ident: $kind:ty),*) -> $answer:ty;)*) => {
        $(fn $call(&self, $($name: $kind),*) -> Result<$answer> { self.inner.$call($($name),*) })*
    };
}

impl Hypervisor for Odd {
    hand_on! {
        domains() -> Vec<DomainInfo>;
        check() -> ();
        lookup(name: &str) -> DomainInfo;
        domain_state(id: DomainId) -> DomainState;
        xml(id: DomainId, config: XmlView) -> String;
        undefine(id: DomainId) -> ();
        start(id: DomainId, start: StartMode) -> ();
        destroy(id: DomainId) -> ();
        define_managed_save_xml(id: DomainId, xml: &str) -> ();
        snapshot(id: DomainId, request: &SnapshotRequest) -> ();
        commit(id: DomainId, request: &CommitRequest) -> ();
        lift_denial(id: DomainId, image: &Path) -> Option<LiftedDenials>;
        restore_denial(id: DomainId, denial: &LiftedDenials) -> ();
        block_job(id: DomainId, target: &str) -> Option<BlockJob>;
        end_block_job(id: DomainId, target: &str, end: BlockJobEnd) -> ();
        cap_block_job(id: DomainId, target: &str, bytes: u64) -> ();
        set_block_threshold(id: DomainId, target: &str, bytes: u64) -> ();
        suspend(id: DomainId) -> ();
        resume(id: DomainId) -> ();
        set_agent_time_limit(id: DomainId, limit: Duration) -> ();
        ping_agent(id: DomainId, limit: Duration) -> ();
        freeze(id: DomainId) -> u32;
        thaw(id: DomainId) -> u32;
        is_thawed(id: DomainId, limit: Duration) -> bool;
        query_block(id: DomainId) -> Vec<QemuDisk>;
        close_unused(id: DomainId, image: &Path) -> ();
        checkpoints(id: DomainId) -> Vec<Checkpoint>;
        create_checkpoint(id: DomainId, request: &CheckpointRequest) -> ();
        delete_checkpoint(id: DomainId, name: &str, parts: CheckpointParts) -> ();
        volume_path(pool: &str, volume: &str) -> PathBuf;
        pool_directory(pool: &str) -> PathBuf;
        refresh_pool(pool: &str) -> ();
        subscribe() -> Receiver<DomainEvent>;
    }

    fn define(&self, xml: &str) -> Result<DomainId> {
        if self.refuse_define {
            let fault = HypervisorError {
                code: code::CONFIG_UNSUPPORTED,
                domain: 10,
                text: "no".into(),
                answer: ErrorOrigin::Answered,
            };
            return Err(fault.into_error("cannot define the domain"));
        }
        self.inner.define(xml)
    }

    fn managed_save_xml(&self, _: DomainId) -> Result<Option<String>> {
        Ok(self.saved.clone())
    }

    fn activity(&self, _: DomainId) -> Result<Activity> {
        Ok(self.activity.clone())
    }
}

pub(super) struct Lab {
    pub(super) folder: tempfile::TempDir,
    pub(super) hypervisor: Odd,
    pub(super) places: LibvirtDirectories,
    pub(super) journal: Option<Catalog>,
    /// What archives have as firmware variables.
    pub(super) vars: Vec<u8>,
    /// What archives are signed with.
    pub(super) key: Option<Arc<SigningKey>>,
}

impl Lab {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["lib/images", "out", "was", "guards"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let places = LibvirtDirectories::system(&folder.path().join("lib"));
        let inner = Simulated::new();
        let hypervisor = Odd { inner, refuse_define: false, saved: None, activity: Activity::default() };
        Self { folder, hypervisor, places, journal: None, vars: b"vars".to_vec(), key: None }
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    pub(super) fn xml(&self) -> String {
        let here = self.folder.path().display();
        format!(
            "<domain type='qemu'><name>web</name><uuid>{UUID}</uuid><genid>{UUID}</genid><os><nvram>{here}/was/web_VARS.fd</nvram>\
             <kernel>{here}/was/vmlinuz</kernel></os><devices>\
             <disk type='file'><driver name='qemu' type='raw'/><source file='{here}/was/web.img'/><backingStore/><target dev='vda'/></disk>\
             <disk type='file'><driver name='qemu' type='raw'/><source file='{here}/was/data.img'/><target dev='vdb'/></disk>\
             <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='sda'/><readonly/></disk>\
             <interface type='network'><mac address='{MAC}'/></interface>\
             <channel type='unix'><source mode='bind' path='{here}/was/port'/></channel>\
             <tpm><backend type='emulator' version='2.0'/></tpm></devices></domain>"
        )
    }

    /// An archive of two disks full of `fill` and the files beside them.
    pub(super) fn archive(&self, xml: &str, fill: u8) -> PathBuf {
        self.archive_of(xml, xml, fill)
    }

    /// The same of a guest that ran as `live` says.
    pub(super) fn archive_of(&self, xml: &str, live: &str, fill: u8) -> PathBuf {
        let path = self.at("web.tar");
        let mut disks = Vec::new();
        for target in ["vda", "vdb"] {
            let image = self.at(&format!("{target}.source"));
            std::fs::write(&image, vec![fill; 70_000]).unwrap();
            let image = DiskImage::open(&image, Format::Raw, &OpenOptions::default()).unwrap();
            disks.push(InputDisk { target: target.to_owned(), image, hint: ChangeHint::Unknown });
        }
        let member = |name: &str, content: &[u8]| Attachment { name: name.into(), content: content.to_vec() };
        let attachments = [
            member("domain.xml", xml.as_bytes()),
            member("domain.live.xml", live.as_bytes()),
            member("nvram.fd", &self.vars),
            member("tpm/tpm2-00.permall", b"tpm"),
            member("boot/kernel", b"kernel"),
        ];
        std::fs::remove_file(&path).unwrap_or_default();
        let material = BackupInput {
            subject: BackupSubject::Domain { name: "web".into(), uuid: Some(UUID.parse().unwrap()) },
            freeze: None,
            attachments: attachments.into(),
            disks,
            parent: ParentChoice::Full(None),
            checkpoint: None,
            session: None,
        };
        let options = BackupOptions {
            compression: Compression::None,
            workers: 1,
            signing_key: self.key.clone(),
            ..BackupOptions::default()
        };
        // What is not signed needs none.
        let state = if self.key.is_some() { self.at("state") } else { "/nowhere".into() };
        let (state, control) = (StateDirectories::new(state), Control::default());
        // What counts as a pipe leaves no record.
        let destinations =
            Destinations::custom(Location::Pipe, |_, _| Ok(Box::new(FileMedium::create(&path)?)));
        let session = BackupSession {
            options: &options,
            destinations: &destinations,
            state: &state,
            control: &control,
        };
        session.write(material).unwrap().finish(&control).unwrap();
        drop(destinations);
        path
    }

    pub(super) fn request(&self) -> RestoreDomainRequest {
        let writing = WriteOptions {
            format: None,
            method: Method::Rewrite,
            cluster_size: None,
            checking: VerifyMode::All,
            workers: 1,
        };
        RestoreDomainRequest {
            archive: self.at("web.tar").into(),
            trust: crate::trust::TrustPolicy::default(),
            identities: Identities::default(),
            name: None,
            disks: vec![],
            rest: DefaultTarget::Directory(self.at("out")),
            without: vec![],
            writing,
            existing: Overwrite::Refuse,
            afterwards: AfterDefine::Leave,
            known: Default::default(),
            parents: Default::default(),
            // Its channel is a socket in the test's folder.
            allow: vec![HostAccess::CharacterDevice],
        }
    }

    pub(super) fn host<'a>(&'a self, guards: &'a Path) -> DefineContext<'a> {
        let journal = self.journal.as_ref().map(|catalog| catalog as &dyn Journal);
        DefineContext {
            hypervisor: &self.hypervisor,
            files: &LocalFiles,
            places: &self.places,
            guards,
            journal,
        }
    }

    pub(super) fn run(&self, request: &RestoreDomainRequest) -> Result<RestoreDomainReport> {
        let guards = self.at("guards");
        let host = self.host(&guards);
        let planned = plan(request, &host, &Control::default());
        let done = run(request, &host, &Control::default());
        if let (Err(planned), Err(done)) = (&planned, &done) {
            assert_eq!(planned.to_string(), done.to_string());
        }
        assert_eq!(std::fs::read_dir(&guards).unwrap().count(), 0);
        done
    }

    pub(super) fn refused(&self, request: &RestoreDomainRequest) -> (ErrorKind, String) {
        let before = self.everything();
        let error = self.run(request).unwrap_err();
        assert_eq!(self.everything(), before, "{error:?}");
        (error.kind(), format!("{error:?}; {}", error.hint().unwrap_or_default()))
    }

    pub(super) fn defined(&self, name: &str) -> DomainXml {
        let id = self.hypervisor.lookup(name).unwrap().id;
        DomainXml::parse(self.hypervisor.xml(id, XmlView::Inactive).unwrap()).unwrap()
    }

    /// Every file with its first byte and its length.
    pub(super) fn everything(&self) -> Vec<(PathBuf, Option<u8>, usize)> {
        fn walk(directory: &Path, found: &mut Vec<(PathBuf, Option<u8>, usize)>) {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, found);
                } else {
                    let bytes = std::fs::read(&path).unwrap();
                    found.push((path, bytes.first().copied(), bytes.len()));
                }
            }
        }
        let mut found = Vec::new();
        walk(self.folder.path(), &mut found);
        found.sort();
        found
    }

    pub(super) fn first(&self, name: &str) -> u8 {
        std::fs::read(self.at(name)).unwrap()[0]
    }
}
