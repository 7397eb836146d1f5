//! Domain XML: what a backup has to know of it, and edits ([`edit`]) that keep every byte they do not mean.
//!
//! libvirt's schema grows with each release, so nothing is parsed into a full model and written back: what is
//! wanted is read, and edits splice byte ranges of the original text.
//!
//! The XML may come out of an archive, so it is hostile: it is bounded in size and in nodes, document type
//! definitions are refused (no entities, so no entity bombs), and no value is trusted to be a sensible path.
//!
//! Imports: `error`, `types`; `image` (a limit).

use std::path::PathBuf;

use roxmltree::{Document, Node, ParsingOptions};

use crate::types::DomainId;
use virtfold_base::error::{Error, ErrorKind, Result};

mod disk;
pub mod edit;
pub mod host_access;
mod host_resources;
mod live_diff;

pub use disk::{ChainEntry, ChainKnowledge, Device, DiskFlags, DomainDisk, ImageSource, Mirror};
pub use live_diff::{DiskDifference, changed_disks, with_live_disks};

/// Larger domain XML is refused; real ones have 3 to 40 KiB.
pub const MAX_BYTES: usize = 4 << 20;
/// More elements, attributes and texts are refused.
const MAX_NODES: u32 = 200_000;

/// Elements of `<devices>` that are sockets, files or terminals of the host.
const CHARACTER_DEVICES: [&str; 4] = ["channel", "serial", "console", "parallel"];

/// The namespace of virtfold's own elements in `<metadata>`.
pub const NAMESPACE: &str = "https://virtfold.org/domain/1";

/// A domain's firmware variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nvram {
    /// The file; `None` when libvirt has not chosen one yet, or when it is no local file.
    pub path: Option<PathBuf>,
    /// What it was made from.
    pub template: Option<PathBuf>,
    /// `raw` or `qcow2`; raw when not said.
    pub format: Option<String>,
    /// What it lies in where that is no local file: `block`, `network`.
    pub elsewhere: Option<String>,
}

/// What an emulated TPM's state is, where the XML names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TpmStorage {
    /// A directory of swtpm's; also libvirt's own places are such.
    Directory,
    /// One file.
    File,
}

/// A domain's emulated TPM. libvirt keeps the state of one without a source of its own under
/// `/var/lib/libvirt/swtpm/UUID/tpm2` (or `tpm1.2`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tpm {
    /// `1.2` or `2.0`.
    pub version: Option<String>,
    /// A state file or directory that the XML names.
    pub source: Option<PathBuf>,
    /// Which of the two.
    pub storage: TpmStorage,
}

/// Files that a start reads besides the disks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootFiles {
    /// Direct boot: the kernel.
    pub kernel: Option<PathBuf>,
    /// Direct boot: the initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Direct boot: the device tree.
    pub dtb: Option<PathBuf>,
    /// The firmware's code, shared by many domains.
    pub loader: Option<PathBuf>,
}

impl BootFiles {
    /// The file of direct boot that `element` names.
    pub fn of(&self, element: &str) -> Option<&PathBuf> {
        match element {
            "kernel" => self.kernel.as_ref(),
            "initrd" => self.initrd.as_ref(),
            "dtb" => self.dtb.as_ref(),
            _ => None,
        }
    }
}

/// What a backup has to know of a domain's XML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainXml {
    text: String,
    /// The domain's type: `kvm`, `qemu`, ...
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uuid; XML that was never defined may have none.
    pub id: Option<DomainId>,
    /// Its disks, in the XML's order.
    pub disks: Vec<DomainDisk>,
    /// Its NVRAM.
    pub nvram: Option<Nvram>,
    /// Its emulated TPMs.
    pub tpms: Vec<Tpm>,
    /// Kernel, initrd, firmware.
    pub boot: BootFiles,
    /// The network interfaces' MAC addresses, as written.
    pub macs: Vec<String>,
    /// Paths of sockets and files of channels, serial lines and consoles: two domains cannot share them.
    /// Pseudo terminals, which every start chooses anew, are not among them.
    pub channel_paths: Vec<PathBuf>,
    /// What of the host the domain lays claim to beside its files, a phrase each; see `claims`.
    pub claims: Vec<String>,
    /// Whether the guest has a channel for qemu-guest-agent.
    pub agent: AgentChannel,
    /// The words of `<virtfold:tag>` elements in `<metadata>`.
    pub tags: Vec<String>,
}

/// The agent's channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentChannel {
    /// There is none.
    Absent,
    /// There is one, and libvirt does not say that somebody listens (shut off, or the agent is not there).
    Present,
    /// The live XML says that the agent is connected.
    Connected,
}

impl DomainXml {
    /// Reads domain XML.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for text that is too large; [`ErrorKind::Damaged`] for what is not the XML
    /// of a domain.
    pub fn parse(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let document = open(&text)?;
        let root = document.root_element();
        // libvirt takes the first of some and all of others.
        if let Some(tag) =
            ["name", "uuid", "os", "devices"].iter().find(|tag| children(root, tag).count() > 1)
        {
            return Err(bad(format!("it has <{tag}> twice")));
        }
        let name = child_text(root, "name").ok_or_else(|| bad("it has no name".to_owned()))?;
        let id = child_text(root, "uuid").map(|t| t.parse()).transpose()?;
        let os = child(root, "os");
        let devices = child(root, "devices");
        let all = |tag: &'static str| devices.into_iter().flat_map(move |d| children(d, tag));
        let disks = all("disk").map(disk::read).collect::<Result<Vec<_>>>()?;
        let mut parsed = Self {
            kind: root.attribute("type").unwrap_or_default().to_owned(),
            name,
            id,
            disks,
            nvram: os.and_then(|os| child(os, "nvram")).map(read_nvram),
            tpms: all("tpm").filter_map(read_tpm).collect(),
            boot: os.map(read_boot).unwrap_or_default(),
            macs: all("interface").filter_map(|i| child(i, "mac")?.attribute("address")).map(own).collect(),
            channel_paths: Vec::new(),
            claims: host_resources::read(root),
            agent: AgentChannel::Absent,
            tags: child(root, "metadata").map(read_tags).unwrap_or_default(),
            text: String::new(),
        };
        for tag in CHARACTER_DEVICES {
            let lasting = all(tag).filter(|c| c.attribute("type") != Some("pty"));
            let paths = lasting.filter_map(|c| child(c, "source")?.attribute("path"));
            parsed.channel_paths.extend(paths.map(PathBuf::from));
        }
        parsed.agent = all("channel").filter_map(read_agent).next().unwrap_or(AgentChannel::Absent);
        drop(document);
        parsed.text = text;
        Ok(parsed)
    }

    /// The text as it was read.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The disk with this target.
    pub fn disk(&self, target: &str) -> Option<&DomainDisk> {
        self.disks.iter().find(|d| d.target == target)
    }

    /// The targets of all disks, cdroms and floppies among them.
    pub fn targets(&self) -> Vec<String> {
        self.disks.iter().map(|d| d.target.clone()).collect()
    }
}

/// The directory of a storage pool, out of the pool's XML.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a pool that is not a directory or a mounted file system.
pub fn pool_directory(xml: &str, pool: &str) -> Result<PathBuf> {
    let document = open_any(xml)?;
    let root = document.root_element();
    let is_directory = matches!(root.attribute("type"), Some("dir" | "fs" | "netfs"));
    let path = child(root, "target").and_then(|t| child_text(t, "path")).filter(|_| is_directory);
    let no = || Error::new(ErrorKind::Unsupported, format!("storage pool '{pool}' is not a directory"));
    path.map(PathBuf::from).ok_or_else(no)
}

/// Parses with the bounds.
fn open_any(text: &str) -> Result<Document<'_>> {
    check_encoding(text)?;
    if text.len() > MAX_BYTES {
        let message = format!("the XML has {} bytes, more than {MAX_BYTES}", text.len());
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options);
    document.map_err(|e| Error::new(ErrorKind::Damaged, "the XML can't be read").with_source(e))
}

/// libvirt's parser obeys the encoding that a text claims: in UTF-7 `+ADw-` is `<`, and it would read another
/// definition than the one that was looked at.
fn check_encoding(text: &str) -> Result<()> {
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let declared =
        text.strip_prefix("<?xml").and_then(|rest| rest.split_once("?>")).map(|(inside, _)| inside);
    let claimed = declared.and_then(|inside| inside.split_once("encoding")).map(|(_, after)| after);
    let is_utf8 = |after: &str| {
        let quoted = after.trim_start().trim_start_matches('=').trim_start();
        let name = quoted.get(1..).and_then(|rest| rest.split(['\'', '"']).next());
        name.is_some_and(|name| ["utf-8", "us-ascii"].contains(&name.to_ascii_lowercase().as_str()))
    };
    if claimed.is_none_or(is_utf8) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsupported, "the XML claims to be in another encoding than UTF-8"))
}

/// Parses with the bounds, and wants a `<domain>`.
fn open(text: &str) -> Result<Document<'_>> {
    let document = open_any(text)?;
    if document.root_element().tag_name().name() != "domain" {
        return Err(bad(format!("it is a <{}>", document.root_element().tag_name().name())));
    }
    Ok(document)
}

fn bad(why: String) -> Error {
    Error::new(ErrorKind::Damaged, format!("the domain XML is not one: {why}"))
}

fn own(text: &str) -> String {
    text.to_owned()
}

fn children<'a, 'i: 'a>(
    node: Node<'a, 'i>,
    tag: &'static str,
) -> impl Iterator<Item = Node<'a, 'i>> + use<'a, 'i> {
    node.children()
        .filter(move |n| n.is_element() && n.tag_name().namespace().is_none() && n.has_tag_name(tag))
}

fn child<'a, 'i: 'a>(node: Node<'a, 'i>, tag: &'static str) -> Option<Node<'a, 'i>> {
    children(node, tag).next()
}

fn child_text(node: Node<'_, '_>, tag: &'static str) -> Option<String> {
    let text = text_within(child(node, tag)?);
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// All text in an element, as libvirt reads it: comments in between do not end it.
fn text_within(node: Node<'_, '_>) -> String {
    node.descendants().filter(Node::is_text).filter_map(|text| text.text()).collect()
}

fn read_nvram(node: Node<'_, '_>) -> Nvram {
    let inline = Some(text_within(node).trim().to_owned()).filter(|text| !text.is_empty());
    let typed = child(node, "source").and_then(|s| s.attribute("file")).map(own);
    Nvram {
        path: inline.or(typed).map(PathBuf::from),
        template: node.attribute("template").map(PathBuf::from),
        format: node.attribute("format").map(own),
        elsewhere: node.attribute("type").filter(|kind| *kind != "file").map(own),
    }
}

fn read_tpm(node: Node<'_, '_>) -> Option<Tpm> {
    let backend = child(node, "backend").filter(|b| b.attribute("type") == Some("emulator"))?;
    let source = child(backend, "source");
    let storage = match source.and_then(|s| s.attribute("type")) {
        Some("file") => TpmStorage::File,
        _ => TpmStorage::Directory,
    };
    let source = source.and_then(|s| s.attribute("path")).map(PathBuf::from);
    Some(Tpm { version: backend.attribute("version").map(own), source, storage })
}

fn read_boot(os: Node<'_, '_>) -> BootFiles {
    let path = |tag| child_text(os, tag).map(PathBuf::from);
    BootFiles { kernel: path("kernel"), initrd: path("initrd"), dtb: path("dtb"), loader: path("loader") }
}

fn read_agent(channel: Node<'_, '_>) -> Option<AgentChannel> {
    let target = child(channel, "target")?;
    (target.attribute("name") == Some("org.qemu.guest_agent.0")).then(|| match target.attribute("state") {
        Some("connected") => AgentChannel::Connected,
        _ => AgentChannel::Present,
    })
}

fn read_tags(metadata: Node<'_, '_>) -> Vec<String> {
    let tags = metadata.descendants().filter(|n| n.has_tag_name((NAMESPACE, "tag")));
    tags.filter_map(|n| n.text()).map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect()
}

#[cfg(test)]
mod tests;
