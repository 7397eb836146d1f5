//! The scan against a parser of whole documents, against a naive search, and against anything.

use super::*;
use proptest::prelude::*;

const GUEST: &str = r#"<?xml version="1.0"?>
<!-- <domain><name>commented</name></domain> -->
<domain type='kvm' id="3">
  <name>web &amp; mail</name>
  <uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
  <metadata><x:tag xmlns:x="urn:x"><disk><source file="/not/a/disk"/></disk><name>no</name></x:tag></metadata>
  <description>&lt;source file='/not/this'/&gt; <![CDATA[<source file="/nor/this"/>]]></description>
  <devices>
    <emulator>/usr/bin/qemu</emulator>
    <disk type='file' device='disk'>
      <source file='/images/a&apos;b&#x20;c.qcow2' index='1'><seclabel model="dac"/></source>
      <backingStore type='file'><format type='qcow2'/><source file='/images/golden.qcow2'/><backingStore/></backingStore>
      <mirror type='file' job='copy'><source file="/images/mirror"/></mirror>
    </disk>
    <disk type='block' device='disk'><source dev = "/dev/vg/data"/></disk>
    <disk type='file' device='cdrom'><source file='/iso/debian.iso'/><target dev='sda'/><readonly/></disk>
    <disk type='network'><source protocol='rbd' name='pool/image'><host name='h'/></source></disk>
    <disk type='file' device='cdrom'><target dev='sdb' bus='sata'/></disk>
    <hostdev><source file='/not/a/disk/either'/></hostdev>
  </devices>
</domain>"#;

fn written(path: &str) -> DiskPath {
    DiskPath { path: path.into(), role: DiskAccess::Written }
}

fn read(path: &str) -> DiskPath {
    DiskPath { path: path.into(), role: DiskAccess::Read }
}

#[test]
fn a_guest_as_libvirt_writes_it() {
    let found = scan(GUEST.as_bytes());
    assert_eq!(found.name.as_deref(), Some("web & mail"));
    assert_eq!(found.uuid.as_deref(), Some("c7a5fdbd-edaf-9455-926a-d65c16db1809"));
    let expect = [
        written("/images/a'b c.qcow2"),
        read("/images/golden.qcow2"),
        written("/images/mirror"),
        written("/dev/vg/data"),
        read("/iso/debian.iso"),
    ];
    assert_eq!(found.disks, expect);
    assert_eq!(found, by_document(GUEST).unwrap());
}

#[test]
fn a_cut_guest_keeps_the_disks_before_the_cut() {
    let cut = GUEST.find("<hostdev>").unwrap();
    assert_eq!(scan(&GUEST.as_bytes()[..cut]), scan(GUEST.as_bytes()));
    let in_disk = GUEST.find("<target dev='sda'").unwrap();
    assert_eq!(scan(&GUEST.as_bytes()[..in_disk]).disks.len(), 4);
}

#[test]
fn giants_are_scanned_in_linear_time_and_bounded_memory() {
    let many = |piece: &str| piece.repeat((4 << 20) / piece.len());
    let disk = "<disk><source file='/d'/></disk>";
    let cases = [
        format!("<domain><devices>{}", many(disk)),
        format!("<domain {}>", (0..400_000).map(|i| format!("a{i}='' ")).collect::<String>()),
        many("<domain>"),
        format!("<domain><name>{}</name>", many("&amp;")),
        format!("<domain><name>{}</name>", many("&")),
        many("<!--x-->"),
        many("<"),
        many("<![CDATA["),
    ];
    for xml in cases {
        let started = std::time::Instant::now();
        assert!(scan(xml.as_bytes()).disks.len() <= MAX_DISKS);
        assert!(started.elapsed().as_secs() < 5, "{:.20} took {:?}", xml, started.elapsed());
    }
}

/// The same by a parser of whole documents; `None` where it is not well-formed.
fn by_document(xml: &str) -> Option<HookDomain> {
    let document = roxmltree::Document::parse(xml).ok()?;
    let root = document.root_element();
    let child = |parent: roxmltree::Node<'_, '_>, name: &str| {
        let found = parent.children().find(|node| node.has_tag_name(name));
        found.map(|node| node.children().filter(|n| n.is_text()).filter_map(|n| n.text()).collect::<String>())
    };
    let mut domain = HookDomain::default();
    if !root.has_tag_name("domain") {
        return Some(domain);
    }
    domain.uuid = child(root, "uuid").map(|text| text.trim_ascii().to_owned());
    domain.name = child(root, "name").map(|text| text.trim_ascii().to_owned());
    let devices = root.children().filter(|node| node.has_tag_name("devices"));
    for disk in devices.flat_map(|node| node.children()).filter(|node| node.has_tag_name("disk")) {
        let readonly = disk.children().any(|node| node.has_tag_name("readonly"));
        for source in disk.descendants().filter(|node| node.has_tag_name("source")) {
            let path = source.attributes().find(|a| ["file", "dev", "dir"].contains(&a.name()));
            let backing = source.ancestors().any(|node| node.has_tag_name("backingStore"));
            let role = if readonly || backing { DiskAccess::Read } else { DiskAccess::Written };
            if let Some(path) = path.filter(|path| !path.value().is_empty()) {
                domain.disks.push(DiskPath { path: path.value().to_owned(), role });
            }
        }
    }
    Some(domain)
}

/// Documents of the elements that count, at places that count or don't.
fn document() -> impl Strategy<Value = String> {
    let text =
        prop_oneof!["[a-z/ .]{0,8}", Just("&amp;&#65;&lt;".to_owned()), Just("<!-- <x> -->".to_owned())];
    let attribute = ("(file|dev|dir|name|index)", "[a-z/&;#x0-9\t]{0,8}")
        .prop_map(|(key, value)| format!(" {key}='{}'", value.replace('&', "&apos;")));
    let leaf = prop_oneof![
        text,
        (attribute, any::<bool>()).prop_map(|(attribute, closed)| match closed {
            true => format!("<source{attribute}/>"),
            false => format!("<source{attribute} ></source >"),
        }),
        "(<readonly/>|<uuid>[a-f0-9-]{0,9}</uuid>|<name> [a-z]{0,5}\n</name>)",
        Just("<![CDATA[<disk>]]>".to_owned()),
    ];
    let element = "(disk|devices|metadata|backingStore|mirror|source|domain|name)";
    leaf.prop_recursive(6, 60, 6, move |inner| {
        (element, proptest::collection::vec(inner, 0..6))
            .prop_map(|(name, children)| format!("<{name}>{}</{name}>", children.concat()))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn agrees_with_a_parser_of_whole_documents(parts in proptest::collection::vec(document(), 0..6), in_disk: bool) {
        let inner = parts.concat();
        let inner = if in_disk { format!("<disk>{inner}</disk>") } else { inner };
        let xml = format!("<domain><devices>{inner}</devices>{inner}</domain>");
        if let Some(expect) = by_document(&xml) {
            prop_assert_eq!(scan(xml.as_bytes()), expect);
        }
    }

    /// Whatever happens to the XML, nothing is found in it that is not written there.
    #[test]
    fn mutations_never_panic_nor_invent(edits in proptest::collection::vec(
        (any::<prop::sample::Index>(), 0..20_usize, proptest::collection::vec(any::<u8>(), 0..6)), 1..12)) {
        let mut bytes = GUEST.as_bytes().to_vec();
        for (at, remove, insert) in edits {
            let at = at.index(bytes.len());
            let end = (at + remove).min(bytes.len());
            bytes.splice(at..end, insert);
        }
        let found = scan(&bytes);
        let plain = String::from_utf8_lossy(&decode_attribute(&bytes)).into_owned();
        let all = found.disks.iter().map(|disk| &disk.path).chain(&found.name).chain(&found.uuid);
        for text in all {
            // An attribute has one space for a line end, whatever the line end.
            let text = text.replace("\r\n", "\n").replace(['\t', '\n', '\r'], " ");
            prop_assert!(plain.contains(&text) || text.contains('\u{fffd}'), "{text:?}");
        }
    }

    #[test]
    fn any_bytes_are_scanned(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        scan(&bytes);
        scan(&[b"<domain>", bytes.as_slice()].concat());
    }
}
