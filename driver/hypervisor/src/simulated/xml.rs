//! The simulated domains' XML: the text that was defined, its disks replaced by what a view says.
//!
//! Imports: `domain_xml`.

use std::fmt::Write as _;

use roxmltree::Document;

use super::state::{SimDisk, SimDomain, SimHost};
use crate::domain_xml::ChainKnowledge;
use crate::domain_xml::edit::escape;
use crate::types::{DomainId, XmlView};

/// The XML of a domain as one of its views has it.
pub(super) fn render(world: &SimHost, id: DomainId, domain: &SimDomain, config: XmlView) -> Option<String> {
    let disks = match config {
        XmlView::Live => domain.qemu.as_ref().map(|_| &domain.views.live)?,
        XmlView::Inactive => domain.views.config.as_ref().unwrap_or(&domain.views.live),
    };
    let document = Document::parse(&domain.text).ok()?;
    let root = document.root_element();
    let devices = root.children().find(|n| n.has_tag_name("devices"))?;
    let mut out = String::new();
    let mut at = 0;
    let mut position = 0;
    for node in devices.children().filter(|n| n.has_tag_name("disk")) {
        let source = node.children().find(|n| n.has_tag_name("source"));
        if source.is_none_or(|source| source.attribute("file").or(source.attribute("dev")).is_none()) {
            // An empty drive, a network disk: the views have none of them.
            continue;
        }
        let target = node.children().find(|n| n.has_tag_name("target")).and_then(|t| t.attribute("dev"));
        out.push_str(domain.text.get(at..node.range().start)?);
        at = node.range().end;
        // One that the view has not was detached.
        let Some(disk) = disks.iter().find(|d| Some(d.target.as_str()) == target) else { continue };
        out.push_str(&disk_xml(world, disk, config, position));
        position += 1;
    }
    out.push_str(domain.text.get(at..)?);
    if let (XmlView::Live, Some(qemu)) = (config, &domain.qemu) {
        out = out.replacen("<domain", &format!("<domain id='{}'", qemu.run), 1);
    }
    if !domain.text.contains("<uuid>") {
        out = out.replacen("</name>", &format!("</name><uuid>{id}</uuid>"), 1);
    }
    Some(out)
}

fn disk_xml(world: &SimHost, disk: &SimDisk, config: XmlView, position: usize) -> String {
    let chain = world.chain(&disk.path);
    let path = |path: &std::path::Path| escape(&path.to_string_lossy()).into_owned();
    let format =
        |path: &std::path::Path| world.images.get(path).map_or("raw", |i| i.format.as_str()).to_owned();
    let mut xml = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='{}'/><source file='{}'/>",
        format(&disk.path),
        path(&disk.path)
    );
    if config == XmlView::Live || disk.chain == ChainKnowledge::Complete {
        let below = chain.iter().skip(1);
        for image in below.clone() {
            let opening = "<backingStore type='file'><format type='";
            // Writing to a string does not fail.
            write!(xml, "{opening}{}'/><source file='{}'/>", format(image), path(image)).unwrap_or_default();
        }
        xml.push_str("<backingStore/>");
        below.for_each(|_| xml.push_str("</backingStore>"));
    }
    if config == XmlView::Live {
        if let Some(ready) = disk.mirror {
            let ready = ready.map(|r| format!(" ready='{r}'")).unwrap_or_default();
            write!(xml, "<mirror type='file' job='active-commit'{ready}/>").unwrap_or_default();
        }
        write!(xml, "<alias name='{}'/>", alias(position)).unwrap_or_default();
    }
    write!(xml, "<target dev='{}' bus='virtio'/></disk>", escape(&disk.target)).unwrap_or_default();
    xml
}

/// The alias of the disk at a place in the domain's order.
pub(super) fn alias(position: usize) -> String {
    format!("virtio-disk{position}")
}
