//! What a domain claims of its host beside disks and firmware: things that only one running guest can have,
//! or that let XML from elsewhere reach into the host. Nothing is decided here; whoever defines XML out of an
//! archive tells it.
//!
//! Imports: nothing of the crate.

use roxmltree::Node;

use super::{child, children};

/// QEMU's own namespace, in which libvirt takes arguments that it passes on unseen.
const QEMU: &str = "http://libvirt.org/schemas/domain/qemu/1.0";
/// More are not told.
const MOST: usize = 64;

/// The claims, a phrase each.
pub(super) fn read(root: Node<'_, '_>) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(devices) = child(root, "devices") {
        if child(devices, "hostdev").is_some() {
            found.push("devices of the host passed through (<hostdev>)".to_owned());
        }
        found.extend(children(devices, "graphics").filter_map(port));
        let taps = children(devices, "interface").filter_map(|i| child(i, "target")?.attribute("dev"));
        // libvirt numbers these anew at each start.
        let named = taps.filter(|dev| !["vnet", "macvtap", "macvlan"].iter().any(|own| dev.starts_with(own)));
        found.extend(named.map(|dev| format!("the network device '{dev}'")));
        let shared = children(devices, "filesystem").filter_map(|f| child(f, "source")?.attribute("dir"));
        found.extend(shared.map(|dir| format!("the directory '{dir}' of the host")));
        let cids = children(devices, "vsock").filter_map(|v| child(v, "cid"));
        let fixed =
            cids.filter(|c| c.attribute("auto") != Some("yes")).filter_map(|c| c.attribute("address"));
        found.extend(fixed.map(|address| format!("the vsock address {address}")));
        let emulator = child(devices, "emulator").and_then(|e| e.text()).map(str::trim);
        let usual = |path: &&str| !path.starts_with("/usr/") || path.contains("/../");
        found.extend(emulator.filter(usual).map(|path| format!("the emulator '{path}'")));
    }
    let arguments = root.children().any(|n| n.has_tag_name((QEMU, "commandline")));
    found.extend(arguments.then(|| "QEMU arguments of its own (<commandline>)".to_owned()));
    found.truncate(MOST);
    found
}

fn port(graphics: Node<'_, '_>) -> Option<String> {
    let port = graphics.attribute("port").filter(|port| *port != "-1" && *port != "0")?;
    let chosen = graphics.attribute("autoport") != Some("yes");
    chosen.then(|| format!("the {} port {port}", graphics.attribute("type").unwrap_or("display")))
}
