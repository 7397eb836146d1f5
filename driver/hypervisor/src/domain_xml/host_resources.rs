//! What a domain claims of its host that only one running guest can have. Nothing is decided here; whoever
//! defines XML out of an archive tells it. What lets XML from elsewhere reach into the host is the business
//! of `host_access`.
//!
//! Imports: nothing of the crate.

use roxmltree::Node;

use super::{child, children};

/// More are not told.
const MOST: usize = 64;

/// The claims, a phrase each.
pub(super) fn read(root: Node<'_, '_>) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(devices) = child(root, "devices") {
        found.extend(children(devices, "graphics").filter_map(port));
        let cids = children(devices, "vsock").filter_map(|v| child(v, "cid"));
        let fixed =
            cids.filter(|c| c.attribute("auto") != Some("yes")).filter_map(|c| c.attribute("address"));
        found.extend(fixed.map(|address| format!("the vsock address {address}")));
    }
    found.truncate(MOST);
    found
}

fn port(graphics: Node<'_, '_>) -> Option<String> {
    let port = graphics.attribute("port").filter(|port| *port != "-1" && *port != "0")?;
    let chosen = graphics.attribute("autoport") != Some("yes");
    chosen.then(|| format!("the {} port {port}", graphics.attribute("type").unwrap_or("display")))
}
