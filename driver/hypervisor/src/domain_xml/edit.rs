//! Edits of domain XML as splices: each one replaces a byte range of the original text, and everything
//! between the ranges stays as it was, elements that nobody here knows included.
//!
//! The edited text is parsed again before it is handed out: an edit that broke it is an error here and not in
//! libvirt.
//!
//! Imports: `error`, `types`.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use roxmltree::{Attribute, Document, Node};

use super::{DomainXml, bad, child, children, open};
use crate::types::DomainId;
use virtfold_base::error::{Error, ErrorKind, Result};

/// An image that a disk is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewImage<'a> {
    /// A file.
    File(&'a Path),
    /// A block device.
    Block(&'a Path),
}

/// Edits of one text, collected and then made at once.
#[derive(Debug)]
pub struct Editor<'a> {
    text: &'a str,
    document: Document<'a>,
    splices: Vec<(Range<usize>, String)>,
}

impl<'a> Editor<'a> {
    /// Begins with `xml`, which stays as it is.
    ///
    /// # Errors
    /// As [`DomainXml::parse`].
    pub fn new(xml: &'a DomainXml) -> Result<Self> {
        Ok(Self { text: xml.text(), document: open(xml.text())?, splices: Vec::new() })
    }

    /// Gives the domain another name.
    ///
    /// # Errors
    /// A name that libvirt would not take.
    pub fn rename(&mut self, name: &str) -> Result<&mut Self> {
        if name.is_empty() || name.contains(['/', '\n', '\0']) {
            let message = format!("'{}' cannot be a domain's name", name.escape_default());
            return Err(Error::new(ErrorKind::Usage, message));
        }
        self.set_text("name", name)?;
        Ok(self)
    }

    /// Gives the domain another uuid, or one at all.
    ///
    /// # Errors
    /// XML that is not a domain's.
    pub fn set_id(&mut self, id: DomainId) -> Result<&mut Self> {
        if child(self.document.root_element(), "uuid").is_some() {
            self.set_text("uuid", &id.to_string())?;
        } else {
            let name = self.element(self.document.root_element(), "name")?.range();
            self.splices.push((name.end..name.end, format!("\n  <uuid>{id}</uuid>")));
        }
        // libvirt refuses XML whose SMBIOS uuid contradicts the domain's.
        let sysinfo = child(self.document.root_element(), "sysinfo").and_then(|s| child(s, "system"));
        let entry = sysinfo.and_then(|s| children(s, "entry").find(|e| e.attribute("name") == Some("uuid")));
        if let Some(entry) = entry {
            let range = self.content(entry);
            self.splices.push((range, id.to_string()));
        }
        Ok(self)
    }

    /// Gives each network interface that has a MAC address another one.
    pub fn set_macs(&mut self, mut make: impl FnMut() -> String) -> &mut Self {
        let devices = child(self.document.root_element(), "devices");
        let interfaces = devices.into_iter().flat_map(|d| children(d, "interface"));
        let macs = interfaces.filter_map(|i| child(i, "mac")?.attribute_node("address"));
        let ranges: Vec<_> = macs.map(|a| a.range_value()).collect();
        self.splices.extend(ranges.into_iter().map(|range| (range, escape(&make()).into_owned())));
        self
    }

    /// Moves the NVRAM to another file.
    ///
    /// # Errors
    /// The domain has no `<os>`, or the path is not text.
    pub fn set_nvram(&mut self, path: &Path) -> Result<&mut Self> {
        let os = self.element(self.document.root_element(), "os")?;
        let path = text_of(path)?;
        let Some(nvram) = child(os, "nvram") else {
            // libvirt chooses a place at the first start; it is known which one before that.
            let splice = self.append(os, &format!("<nvram>{}</nvram>", escape(path)));
            self.splices.push(splice);
            return Ok(self);
        };
        if let Some(file) = child(nvram, "source").and_then(|s| s.attribute_node("file")) {
            self.splices.push((file.range_value(), escape(path).into_owned()));
        } else {
            let splice = self.replace_content(nvram, path);
            self.splices.push(splice);
        }
        Ok(self)
    }

    /// Moves an emulated TPM's state where the XML names it. `which` counts those that do.
    ///
    /// # Errors
    /// There is no such TPM, or the path is not text.
    pub fn set_tpm_source(&mut self, which: usize, path: &Path) -> Result<&mut Self> {
        let devices = self.element(self.document.root_element(), "devices")?;
        let sources = children(devices, "tpm")
            .filter_map(|t| child(child(t, "backend")?, "source")?.attribute_node("path"));
        let range = sources.map(|a| a.range_value()).nth(which);
        let range = range.ok_or_else(|| bad(format!("it has no TPM {which} with a path")))?;
        self.splices.push((range, escape(text_of(path)?).into_owned()));
        Ok(self)
    }

    /// Replaces direct boot's `kernel`, `initrd` or `dtb`.
    ///
    /// # Errors
    /// The domain has no such element, or the path is not text.
    pub fn set_boot_file(&mut self, element: &'static str, path: &Path) -> Result<&mut Self> {
        let os = self.element(self.document.root_element(), "os")?;
        let splice = self.replace_content(self.element(os, element)?, text_of(path)?);
        self.splices.push(splice);
        Ok(self)
    }

    /// Gives the domain another generation id, where it has one: what tells a guest that it was put back to
    /// an earlier state (Windows' domain controllers depend on it).
    pub fn set_generation(&mut self, id: &str) -> &mut Self {
        let written = child(self.document.root_element(), "genid").filter(|g| g.first_child().is_some());
        let splice = written.map(|node| self.replace_content(node, id));
        self.splices.extend(splice);
        self
    }

    /// Moves sockets that QEMU makes and files that it writes for channels, serial lines and consoles:
    /// `place` gives each path its new one, or none to leave it. Sockets that others make, terminals and
    /// devices stay.
    ///
    /// # Errors
    /// A path that is not text.
    pub fn set_channel_paths(&mut self, place: impl Fn(&Path) -> Option<PathBuf>) -> Result<&mut Self> {
        let devices = child(self.document.root_element(), "devices");
        let mut splices = Vec::new();
        for tag in super::CHARACTER_DEVICES {
            for device in devices.into_iter().flat_map(|d| children(d, tag)) {
                let source = child(device, "source");
                let made = match device.attribute("type") {
                    Some("unix") => source.is_some_and(|s| s.attribute("mode") == Some("bind")),
                    kind => kind == Some("file"),
                };
                let path = source.filter(|_| made).and_then(|s| s.attribute_node("path"));
                let log = child(device, "log").and_then(|l| l.attribute_node("file"));
                for found in path.into_iter().chain(log) {
                    if let Some(new) = place(Path::new(found.value())) {
                        splices.push((found.range_value(), escape(text_of(&new)?).into_owned()));
                    }
                }
            }
        }
        self.splices.extend(splices);
        Ok(self)
    }

    /// Empties a drive for CDs or floppies.
    ///
    /// # Errors
    /// No such disk.
    pub fn eject(&mut self, target: &str) -> Result<&mut Self> {
        let disk = self.find_disk(target)?;
        let medium = ["source", "backingStore", "mirror", "auth", "encryption"];
        let medium = medium.iter().flat_map(|tag| children(disk, tag));
        let mut splices: Vec<_> = medium.map(|node| (self.with_blank_before(node), String::new())).collect();
        splices.push(self.set_attribute(disk, "type", "file"));
        self.splices.extend(splices);
        Ok(self)
    }

    /// Takes a disk out of the domain.
    ///
    /// # Errors
    /// No such disk.
    pub fn remove_disk(&mut self, target: &str) -> Result<&mut Self> {
        let splice = (self.with_blank_before(self.find_disk(target)?), String::new());
        self.splices.push(splice);
        Ok(self)
    }

    /// Adds a device, as its XML says it.
    ///
    /// # Errors
    /// The domain has no `<devices>`.
    pub fn add_device(&mut self, element: &str) -> Result<&mut Self> {
        let splice = self.append(self.element(self.document.root_element(), "devices")?, element);
        self.splices.push(splice);
        Ok(self)
    }

    /// Lets a disk use another image, of `format`. What the XML said about the chain below the old one goes
    /// away, so that libvirt reads the new one's header. A mirror's mark goes, too.
    ///
    /// # Errors
    /// No such disk, or a path that is not text.
    pub fn set_disk(&mut self, target: &str, image: NewImage<'_>, format: &str) -> Result<&mut Self> {
        let (kind, attribute, path) = match image {
            NewImage::File(path) => ("file", "file", text_of(path)?),
            NewImage::Block(path) => ("block", "dev", text_of(path)?),
        };
        let disk = self.find_disk(target)?;
        let mut splices = vec![
            self.set_attribute(disk, "type", kind),
            self.set_attribute(self.element(disk, "driver")?, "type", format),
        ];
        let location = format!("{attribute}='{}'", escape(path));
        match child(disk, "source") {
            Some(source) => splices.extend(self.relocate(source, &location)),
            None => {
                let driver = self.element(disk, "driver")?.range();
                splices.push((driver.end..driver.end, format!("\n      <source {location}/>")));
            }
        }
        for tag in ["backingStore", "mirror"] {
            splices.extend(child(disk, tag).map(|node| (self.with_blank_before(node), String::new())));
        }
        self.splices.extend(splices);
        Ok(self)
    }

    /// Takes the topmost image off a disk's chain: the one below it, as `<backingStore>` describes it,
    /// becomes the disk's own. What a pivot should have written.
    ///
    /// # Errors
    /// No such disk, or the XML does not describe the image below.
    pub fn pop_image(&mut self, target: &str) -> Result<&mut Self> {
        let disk = self.find_disk(target)?;
        let undescribed = || bad(format!("it does not say what lies below the image of disk '{target}'"));
        let backing = child(disk, "backingStore").ok_or_else(undescribed)?;
        let (kind, format) = (backing.attribute("type"), child(backing, "format"));
        let below = child(backing, "source").ok_or_else(undescribed)?;
        let format = format.and_then(|f| f.attribute("type")).ok_or_else(undescribed)?;
        let source = self.element(disk, "source")?;
        let copy = |node: Node<'_, '_>| self.text.get(node.range()).unwrap_or_default().to_owned();
        // Where the XML leaves it to the header what is further down, it goes on doing so: an empty element
        // would say that there is nothing, and the guest would not see what the images below have.
        let next = match child(backing, "backingStore") {
            Some(next) => (backing.range(), copy(next)),
            None => (self.with_blank_before(backing), String::new()),
        };
        let mut splices = vec![
            self.set_attribute(disk, "type", kind.ok_or_else(undescribed)?),
            self.set_attribute(self.element(disk, "driver")?, "type", format),
            (source.range(), copy(below)),
            next,
        ];
        splices.extend(child(disk, "mirror").map(|node| (self.with_blank_before(node), String::new())));
        self.splices.extend(splices);
        Ok(self)
    }

    /// Puts a qcow2 overlay on top of a disk's image, which becomes the first of the chain below: the reverse
    /// of [`Editor::pop_image`]. What a snapshot should have written.
    ///
    /// # Errors
    /// No such disk, one without an image, or a path that is not text.
    pub fn push_image(&mut self, target: &str, overlay: &Path) -> Result<&mut Self> {
        let disk = self.find_disk(target)?;
        let (source, driver) = (self.element(disk, "source")?, self.element(disk, "driver")?);
        let copy = |node: Node<'_, '_>| self.text.get(node.range()).unwrap_or_default();
        let below = child(disk, "backingStore");
        let opening = format!(
            "<backingStore type='{}'><format type='{}'/>",
            escape(disk.attribute("type").unwrap_or("file")),
            escape(driver.attribute("type").unwrap_or("raw")),
        );
        let backing = format!("{opening}{}{}</backingStore>", copy(source), below.map_or("", copy));
        let top = format!("<source file='{}'/>", escape(text_of(overlay)?));
        let mut splices =
            vec![self.set_attribute(disk, "type", "file"), self.set_attribute(driver, "type", "qcow2")];
        match below {
            Some(node) => splices.extend([(source.range(), top), (node.range(), backing)]),
            None => splices.push((source.range(), format!("{top}{backing}"))),
        }
        self.splices.extend(splices);
        Ok(self)
    }

    /// Makes the edits.
    ///
    /// # Errors
    /// Two edits of the same place, or a result that is no domain XML.
    pub fn finish(mut self) -> Result<DomainXml> {
        self.splices.sort_by_key(|(range, _)| (range.start, range.end));
        let mut out = String::with_capacity(self.text.len() + 256);
        let mut at = 0;
        for (range, replacement) in &self.splices {
            let kept = self.text.get(at..range.start);
            out.push_str(kept.ok_or_else(|| bad("two edits meet in one place".to_owned()))?);
            out.push_str(replacement);
            at = range.end;
        }
        out.push_str(self.text.get(at..).unwrap_or_default());
        DomainXml::parse(out)
    }

    fn element<'n>(&self, node: Node<'n, 'a>, tag: &'static str) -> Result<Node<'n, 'a>> {
        child(node, tag).ok_or_else(|| bad(format!("<{}> has no <{tag}>", node.tag_name().name())))
    }

    fn find_disk(&self, target: &str) -> Result<Node<'_, 'a>> {
        let devices = self.element(self.document.root_element(), "devices")?;
        let is_it = |d: &Node<'_, '_>| child(*d, "target").and_then(|t| t.attribute("dev")) == Some(target);
        let missing = || Error::new(ErrorKind::NotFound, format!("the domain has no disk '{target}'"));
        children(devices, "disk").find(is_it).ok_or_else(missing)
    }

    /// Between an element's tags; an empty place before the end of `<x/>` where there are none.
    fn content(&self, node: Node<'_, '_>) -> Range<usize> {
        match (node.first_child(), node.last_child()) {
            (Some(first), Some(last)) => first.range().start..last.range().end,
            _ => node.range().end..node.range().end,
        }
    }

    /// Replaces an element's contents by text; `<x a='b'/>` becomes `<x a='b'>text</x>`.
    fn replace_content(&self, node: Node<'_, '_>, text: &str) -> (Range<usize>, String) {
        if node.first_child().is_some() {
            return (self.content(node), escape(text).into_owned());
        }
        let whole = self.text.get(node.range()).unwrap_or_default();
        let open = whole.split_once('>').map_or(whole, |(open, _)| open).trim_end_matches('/').trim_end();
        (node.range(), format!("{open}>{}</{}>", escape(text), node.tag_name().name()))
    }

    /// Puts an element behind the last one of `node`.
    fn append(&self, node: Node<'_, '_>, element: &str) -> (Range<usize>, String) {
        match node.last_element_child().map(|last| last.range().end) {
            Some(at) => (at..at, element.to_owned()),
            None => {
                let whole = self.text.get(node.range()).unwrap_or_default();
                let open = whole.split_once('>').map_or(whole, |(open, _)| open).trim_end_matches('/');
                (node.range(), format!("{open}>{element}</{}>", node.tag_name().name()))
            }
        }
    }

    fn set_text(&mut self, tag: &'static str, text: &str) -> Result<()> {
        let splice = self.replace_content(self.element(self.document.root_element(), tag)?, text);
        self.splices.push(splice);
        Ok(())
    }

    fn set_attribute(&self, node: Node<'_, '_>, name: &str, value: &str) -> (Range<usize>, String) {
        match node.attribute_node(name) {
            Some(attribute) => (attribute.range_value(), escape(value).into_owned()),
            None => {
                let at = node.range().start + 1 + node.tag_name().name().len();
                (at..at, format!(" {name}='{}'", escape(value)))
            }
        }
    }

    /// Puts `location` in the place of a source's own; other attributes and the elements inside stay, save
    /// those that belong to the old place alone.
    fn relocate(&self, source: Node<'_, '_>, location: &str) -> Vec<(Range<usize>, String)> {
        const OLD: [&str; 7] = ["file", "dev", "pool", "volume", "mode", "protocol", "name"];
        let old = |a: &Attribute<'_, '_>| OLD.contains(&a.name());
        let mut ranges: Vec<Range<usize>> = source.attributes().filter(old).map(|a| a.range()).collect();
        // An attribute goes with the blank before it, so that none is left behind; the first one keeps its
        // place.
        let mut splices = Vec::new();
        if ranges.is_empty() {
            let at = source.range().start + 1 + "source".len();
            splices.push((at..at, format!(" {location}")));
        } else {
            splices.push((ranges.remove(0), location.to_owned()));
        }
        splices.extend(ranges.into_iter().map(|r| (self.blank_before(r.start)..r.end, String::new())));
        for tag in ["slices", "host", "auth"] {
            let stale = children(source, tag).map(|n| (self.with_blank_before(n), String::new()));
            splices.extend(stale);
        }
        splices
    }

    fn with_blank_before(&self, node: Node<'_, '_>) -> Range<usize> {
        self.blank_before(node.range().start)..node.range().end
    }

    /// Where the white space before `at` begins.
    fn blank_before(&self, at: usize) -> usize {
        self.text.get(..at).map_or(at, |before| before.trim_end_matches([' ', '\t', '\n', '\r']).len())
    }
}

fn text_of(path: &Path) -> Result<&str> {
    let message = || format!("'{}' cannot stand in domain XML: it is not UTF-8", path.display());
    path.to_str().ok_or_else(|| Error::new(ErrorKind::Unsupported, message()))
}

/// For attribute values in quotes of either kind, and for text.
pub fn escape(text: &str) -> Cow<'_, str> {
    const SPECIAL: [char; 8] = ['&', '<', '>', '\'', '"', '\n', '\t', '\r'];
    if !text.contains(SPECIAL) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            '\t' => out.push_str("&#9;"),
            '\r' => out.push_str("&#13;"),
            other => out.push(other),
        }
    }
    Cow::Owned(out)
}
