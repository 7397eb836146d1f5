//! Tests of reading and of edits, on XML as libvirt writes it.

use std::path::Path;

use proptest::prelude::*;
use uuid::Uuid;

use super::edit::{Editor, NewImage};
use super::*;

const WINDOWS: &str = include_str!("testdata/windows.xml");
const SERVER: &str = include_str!("testdata/server_live.xml");

fn parsed(text: &str) -> DomainXml {
    DomainXml::parse(text).unwrap()
}

#[test]
fn a_windows_guest_is_read() {
    let xml = parsed(WINDOWS);
    assert_eq!(xml.name, "büro & <co>");
    assert_eq!(xml.kind, "kvm");
    assert_eq!(xml.id.unwrap().to_string(), "3b51a0a6-3c5a-4c1e-9d0b-2b4f6f1f8f11");
    assert_eq!(xml.targets(), ["sda", "sdb", "sdc", "fda", "sdd", "sde"]);
    assert_eq!(
        xml.nvram.as_ref().unwrap().path.as_deref(),
        Some(Path::new("/var/lib/libvirt/qemu/nvram/b_VARS.fd"))
    );
    assert_eq!(
        xml.tpms,
        [Tpm { version: Some("2.0".to_owned()), source: None, storage: TpmStorage::Directory }]
    );
    assert_eq!(xml.macs, ["52:54:00:aa:bb:01", "52:54:00:aa:bb:02"]);
    assert_eq!(xml.tags, ["nightly", "offsite"]);
    assert_eq!(xml.claims, Vec::<String>::new());
    assert_eq!(xml.agent, AgentChannel::Present);
    let disk = |target: &str| xml.disk(target).unwrap();
    assert_eq!(disk("sda").image.source, ImageSource::File("/images/b & c.qcow2".into()));
    assert_eq!(disk("sda").image.format.as_deref(), Some("qcow2"));
    assert_eq!(disk("sda").chain, ChainKnowledge::Partial);
    assert_eq!(disk("sdb").device, Device::Cdrom);
    assert_eq!(disk("sdb").image.source, ImageSource::Empty);
    assert!(disk("sdb").marks.readonly);
    assert_eq!(disk("sdc").image.source, ImageSource::Volume { pool: "data".into(), volume: "v1".into() });
    assert_eq!(disk("fda").device, Device::Floppy);
    assert_eq!(disk("sdd").image.source, ImageSource::Network { protocol: "rbd".into() });
    assert!(disk("sde").marks.shareable && disk("sde").marks.encrypted);
    assert_eq!(disk("sde").snapshot.as_deref(), Some("no"));
}

#[test]
fn a_live_chain_is_read_to_its_end() {
    let xml = parsed(SERVER);
    let disk = xml.disk("vda").unwrap();
    assert_eq!(disk.image.source, ImageSource::File("/images/s.overlay".into()));
    let below: Vec<_> = disk.backing.iter().map(|i| (i.source.clone(), i.format.clone().unwrap())).collect();
    let expected = [
        (ImageSource::Block("/dev/vg/s".into()), "qcow2".to_owned()),
        (ImageSource::File("/images/golden.raw".into()), "raw".to_owned()),
    ];
    assert_eq!(below, expected);
    assert_eq!(disk.chain, ChainKnowledge::Complete);
    assert_eq!(disk.alias.as_deref(), Some("virtio-disk0"));
    let mirror = Mirror { job: "active-commit".into(), ready: Some("pivot".into()) };
    assert_eq!(disk.mirror, Some(mirror));
    assert_eq!(xml.agent, AgentChannel::Connected);
    assert_eq!(xml.channel_paths, [Path::new("/run/libvirt/qemu/channel/3-s/org.qemu.guest_agent.0")]);
    assert_eq!(xml.boot.kernel.as_deref(), Some(Path::new("/boot/vmlinuz")));
}

/// Lines that differ, as a diff would show them.
fn changes(before: &str, after: &str) -> Vec<String> {
    let (old, new): (Vec<_>, Vec<_>) = (before.lines().collect(), after.lines().collect());
    let gone = old.iter().filter(|l| !new.contains(l)).map(|l| format!("-{}", l.trim()));
    let come = new.iter().filter(|l| !old.contains(l)).map(|l| format!("+{}", l.trim()));
    gone.chain(come).collect()
}

#[test]
fn a_clone_changes_what_it_must_and_no_more() {
    let xml = parsed(WINDOWS);
    let mut edit = Editor::new(&xml).unwrap();
    let mut mac = 0;
    let id = DomainId(Uuid::from_u128(7));
    edit.rename("copy & more").unwrap().set_id(id).unwrap();
    edit.set_macs(|| {
        mac += 1;
        format!("52:54:00:00:00:0{mac}")
    });
    edit.set_nvram(Path::new("/new/copy_VARS.fd")).unwrap();
    edit.set_disk("sda", NewImage::File(Path::new("/new/it's.qcow2")), "qcow2").unwrap();
    edit.set_disk("sdc", NewImage::File(Path::new("/new/sdc.raw")), "raw").unwrap();
    let new = edit.finish().unwrap();
    assert_eq!(new.name, "copy & more");
    assert_eq!(new.id, Some(id));
    let expected = [
        "-<name>büro &amp; &lt;co&gt;</name>",
        "-<uuid>3b51a0a6-3c5a-4c1e-9d0b-2b4f6f1f8f11</uuid>",
        "-<entry name='uuid'>3b51a0a6-3c5a-4c1e-9d0b-2b4f6f1f8f11</entry>",
        "-<nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/b_VARS.fd</nvram>",
        "-<source file='/images/b &amp; c.qcow2' startupPolicy='optional'>",
        "-<disk type='volume' device='disk'>",
        "-<driver name='qemu' type='qcow2' discard='unmap'/>",
        "-<source pool='data' volume='v1'/>",
        "-<mac address='52:54:00:aa:bb:01'/>",
        "-<mac address=\"52:54:00:aa:bb:02\"/>",
        "+<name>copy &amp; more</name>",
        "+<uuid>00000000-0000-0000-0000-000000000007</uuid>",
        "+<entry name='uuid'>00000000-0000-0000-0000-000000000007</entry>",
        "+<nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/new/copy_VARS.fd</nvram>",
        "+<source file='/new/it&apos;s.qcow2' startupPolicy='optional'>",
        "+<driver name='qemu' type='raw' discard='unmap'/>",
        "+<source file='/new/sdc.raw'/>",
        "+<mac address='52:54:00:00:00:01'/>",
        "+<mac address=\"52:54:00:00:00:02\"/>",
    ];
    assert_eq!(changes(WINDOWS, new.text()), expected);
    assert!(new.text().contains("<!-- kept, & not parsed -->"));
    assert_eq!(new.disk("sda").unwrap().image.source, ImageSource::File("/new/it's.qcow2".into()));
}

#[test]
fn taking_the_overlay_off_gives_what_a_pivot_writes() {
    let xml = parsed(SERVER);
    let mut edit = Editor::new(&xml).unwrap();
    edit.pop_image("vda").unwrap();
    let once = edit.finish().unwrap();
    let disk = once.disk("vda").unwrap();
    assert_eq!(disk.image.source, ImageSource::Block("/dev/vg/s".into()));
    assert_eq!((disk.backing.len(), disk.chain, disk.mirror.clone()), (1, ChainKnowledge::Complete, None));
    let mut edit = Editor::new(&once).unwrap();
    edit.pop_image("vda").unwrap();
    let twice = edit.finish().unwrap();
    let disk = twice.disk("vda").unwrap();
    assert_eq!(disk.image.source, ImageSource::File("/images/golden.raw".into()));
    assert_eq!((disk.image.format.as_deref(), disk.backing.len()), (Some("raw"), 0));
    assert!(Editor::new(&twice).unwrap().pop_image("vda").is_err());
}

#[test]
fn an_overlay_put_on_comes_off_again() {
    for (text, target) in [(SERVER, "vda"), (WINDOWS, "sda"), (WINDOWS, "sdc")] {
        let xml = parsed(text);
        let before = xml.disk(target).unwrap();
        let mut edit = Editor::new(&xml).unwrap();
        edit.push_image(target, Path::new("/o/it's")).unwrap();
        let pushed = edit.finish().unwrap();
        let disk = pushed.disk(target).unwrap();
        assert_eq!(disk.image.source, ImageSource::File("/o/it's".into()));
        assert_eq!(disk.image.format.as_deref(), Some("qcow2"));
        assert_eq!(disk.backing[0].source, before.image.source);
        assert_eq!(disk.backing.len(), before.backing.len() + 1);
        let mut edit = Editor::new(&pushed).unwrap();
        edit.pop_image(target).unwrap();
        let popped = edit.finish().unwrap();
        let after = popped.disk(target).unwrap();
        assert_eq!((&after.image, &after.backing), (&before.image, &before.backing), "{target}");
        assert_eq!(after.chain, before.chain, "{target}: what the header says is below stays below");
    }
}

#[test]
fn a_block_device_takes_the_place_of_a_file_and_back() {
    let xml = parsed(SERVER);
    let mut edit = Editor::new(&xml).unwrap();
    edit.set_disk("vda", NewImage::Block(Path::new("/dev/vg/new")), "raw").unwrap();
    let new = edit.finish().unwrap();
    let disk = new.disk("vda").unwrap();
    assert_eq!(disk.image.source, ImageSource::Block("/dev/vg/new".into()));
    assert_eq!((disk.backing.len(), disk.chain, disk.mirror.clone()), (0, ChainKnowledge::Partial, None));
    let mut edit = Editor::new(&xml).unwrap();
    edit.set_disk("sdz", NewImage::File(Path::new("/x")), "raw").unwrap_err();
    edit.rename("a/b").unwrap_err();
}

#[test]
fn a_copy_gets_its_own_sockets_and_loses_disks() {
    let text = "<domain><name>a</name><genid>1</genid><os/><devices><disk><target dev='vda'/></disk>
      <disk><target dev='vdb'/></disk>
      <serial type='file'><source path='/s'/><log file='/l'/></serial><console type='file'><source path='/s'/></console>
      <channel type='unix'><source mode='bind' path='/c'/></channel><serial type='pty'><source path='/dev/pts/1'/></serial>
      <channel type='unix'><source mode='connect' path='/theirs'/></channel></devices></domain>";
    let xml = parsed(text);
    assert_eq!(xml.channel_paths, ["/c", "/theirs", "/s", "/s"].map(Path::new));
    let mut edit = Editor::new(&xml).unwrap();
    let renamed = |path: &Path| Some(Path::new("/new").join(path.strip_prefix("/").unwrap()));
    edit.set_channel_paths(renamed).unwrap().set_generation("2").set_nvram(Path::new("/n")).unwrap();
    edit.remove_disk("vdb").unwrap();
    let new = edit.finish().unwrap();
    assert_eq!(new.channel_paths, ["/new/c", "/theirs", "/new/s", "/new/s"].map(Path::new));
    assert!(new.text().contains("<log file='/new/l'/>") && new.text().contains("<genid>2</genid>"));
    assert_eq!(new.nvram.as_ref().unwrap().path.as_deref(), Some(Path::new("/n")));
    assert_eq!(new.targets(), ["vda"]);
}

#[test]
fn claims_on_the_host_are_told() {
    let text = "<domain><name>a</name><devices><graphics type='vnc' port='5901' autoport='no'/>
      <graphics type='spice' port='-1' autoport='yes'/><vsock><cid auto='no' address='3'/></vsock></devices></domain>";
    assert_eq!(parsed(text).claims, ["the vnc port 5901", "the vsock address 3"]);
}

#[test]
fn a_comment_does_not_end_a_text() {
    let text = "<domain><name>web<!-- -->x</name><os><kernel>/k<!-- -->/../x</kernel><nvram>/n<!-- -->2</nvram></os></domain>";
    let xml = parsed(text);
    assert_eq!((xml.name.as_str(), xml.boot.kernel.as_deref()), ("webx", Some(Path::new("/k/../x"))));
    assert_eq!(xml.nvram.unwrap().path.as_deref(), Some(Path::new("/n2")));
}

#[test]
fn a_drive_is_emptied_whatever_is_in_it() {
    for (kind, source) in [
        ("file", "<source file='/x'/>"),
        ("network", "<source protocol='http' name='x'><host name='h'/></source><auth/>"),
        ("block", "<source dev='/dev/sr0'/><backingStore/>\n<source file='/second'/>"),
    ] {
        let xml = parsed(&format!(
            "<domain><name>a</name><devices><disk type='{kind}' device='cdrom'>\
             <driver name='qemu'/>{source}<target dev='sda'/></disk></devices></domain>"
        ));
        let mut edit = Editor::new(&xml).unwrap();
        edit.eject("sda").unwrap();
        let new = edit.finish().unwrap();
        let disk = "<disk type='file' device='cdrom'><driver name='qemu'/><target dev='sda'/></disk>";
        assert!(new.text().contains(disk), "{}", new.text());
        assert_eq!(new.disk("sda").unwrap().image.source, ImageSource::Empty);
    }
}

#[test]
fn what_is_missing_is_put_in() {
    let xml = parsed(
        "<domain><name>a</name><os><nvram template='/t'/></os><devices>\
        <disk device='cdrom'><driver name='qemu'/><target dev='sda'/></disk></devices></domain>",
    );
    let mut edit = Editor::new(&xml).unwrap();
    edit.set_id(DomainId(Uuid::from_u128(1))).unwrap().set_nvram(Path::new("/n<1>")).unwrap();
    edit.set_disk("sda", NewImage::File(Path::new("/i")), "raw").unwrap();
    let new = edit.finish().unwrap();
    assert_eq!(new.id, Some(DomainId(Uuid::from_u128(1))));
    assert_eq!(new.nvram.as_ref().unwrap().path.as_deref(), Some(Path::new("/n<1>")));
    assert_eq!(new.disk("sda").unwrap().image.source, ImageSource::File("/i".into()));
    assert_eq!(new.disk("sda").unwrap().image.format.as_deref(), Some("raw"));
}

#[test]
fn hostile_xml_is_refused() {
    let entity = "<!DOCTYPE d [<!ENTITY a 'x'>]><domain><name>&a;</name></domain>";
    assert!(DomainXml::parse(entity).is_err());
    assert!(DomainXml::parse("<domain/>").is_err());
    assert!(DomainXml::parse("<network><name>x</name></network>").is_err());
    assert!(DomainXml::parse("<domain><name>x</name><uuid>7</uuid></domain>").is_err());
    assert!(DomainXml::parse(" ".repeat(MAX_BYTES + 1)).is_err());
    let many = format!("<domain><name>x</name>{}</domain>", "<a/>".repeat(200_001));
    assert!(DomainXml::parse(many).is_err());
    let chain = format!(
        "<domain><name>x</name><devices><disk><target dev='a'/>{}{}</disk></devices></domain>",
        "<backingStore type='file'>".repeat(300),
        "</backingStore>".repeat(300)
    );
    assert!(DomainXml::parse(chain).is_err());
    for twice in ["<name>y</name>", "<devices/><devices/>", "<os/><os/>"] {
        assert!(DomainXml::parse(format!("<domain><name>x</name>{twice}</domain>")).is_err(), "{twice}");
    }
    let target = "<domain><name>x</name><devices><disk><target dev='../a'/></disk></devices></domain>";
    assert!(DomainXml::parse(target).is_err());
    // Deep nesting must be an error or a result, never a crash.
    let deep = format!("<domain><name>x</name>{}{}</domain>", "<a>".repeat(100_000), "</a>".repeat(100_000));
    DomainXml::parse(deep).map(|_| ()).unwrap_or_default();
}

#[test]
fn a_directory_pool_has_a_path() {
    let pool = |kind: &str| format!("<pool type='{kind}'><target><path>/pool</path></target></pool>");
    assert_eq!(pool_directory(&pool("dir"), "p").unwrap(), Path::new("/pool"));
    assert!(pool_directory(&pool("logical"), "p").is_err());
}

proptest! {
    #[test]
    fn any_name_and_path_comes_back(name in "[^/\u{0}-\u{1f}]{1,20}", path in "/[^\u{0}-\u{8}\u{b}\u{c}\u{e}-\u{1f}\u{fffe}\u{ffff}]{0,30}") {
        prop_assume!(name.trim() == name && !name.contains(['\u{fffe}', '\u{ffff}']));
        let xml = parsed(WINDOWS);
        let mut edit = Editor::new(&xml).unwrap();
        edit.rename(&name).unwrap();
        edit.set_disk("sda", NewImage::File(Path::new(&path)), "qcow2").unwrap();
        let new = edit.finish().unwrap();
        prop_assert_eq!(&new.name, &name);
        prop_assert_eq!(new.disk("sda").unwrap().image.source.path(), Some(Path::new(&path)));
    }

    #[test]
    fn damaged_xml_never_panics(at in 0..WINDOWS.len(), with in "[<>/'\"a&; ]{0,3}", len in 0usize..40) {
        let mut text = WINDOWS.as_bytes().to_vec();
        let end = (at + len).min(text.len());
        text.splice(at..end, with.bytes());
        if let Ok(xml) = DomainXml::parse(String::from_utf8_lossy(&text).into_owned()) {
            let mut edit = Editor::new(&xml).unwrap();
            edit.rename("x").map(|_| ()).unwrap_or_default();
            edit.set_disk("sda", NewImage::File(Path::new("/x")), "raw").map(|_| ()).unwrap_or_default();
            edit.pop_image("sda").map(|_| ()).unwrap_or_default();
            edit.finish().map(|_| ()).unwrap_or_default();
        }
    }
}

/// What the reference of the configuration tells people to write is what is read; nothing of others is.
#[test]
fn tags_are_those_that_the_reference_shows() {
    let reference = include_str!("../../../../config/README.md");
    let is_xml = |line: &&str| line.starts_with("    ") && line.trim_start().starts_with('<');
    let shown: Vec<&str> = reference.lines().filter(is_xml).collect();
    let metadata = shown.join("\n");
    assert!(metadata.contains(NAMESPACE), "{metadata}");
    let domain = |metadata: &str| {
        let disk = WINDOWS.replace(&WINDOWS[between(WINDOWS, "<metadata>", "</metadata>")], metadata);
        parsed(&disk).tags
    };
    assert_eq!(domain(&metadata), ["gold"]);
    let several = metadata.replace("gold", " gold </virtfold:tag><virtfold:tag/><virtfold:tag>silver");
    assert_eq!(domain(&several), ["gold", "silver"]);
    assert_eq!(domain(&metadata.replace("domain/1", "domain/2")), Vec::<String>::new());
    assert_eq!(domain("<metadata><tag>gold</tag></metadata>"), Vec::<String>::new());
    assert_eq!(domain(""), Vec::<String>::new());
}

/// From the first `begin` to the end of the first `end`.
fn between(text: &str, begin: &str, end: &str) -> std::ops::Range<usize> {
    let from = text.find(begin).unwrap();
    from..text.find(end).unwrap() + end.len()
}
