//! Which values of what reaches the host pass.

use std::path::{Component, Path};

use roxmltree::Node;

use super::Granted;
use super::table::Passes;
use crate::domain_xml::child;

/// Where packages put firmware and option ROMs; nobody but root writes there.
const PACKAGED: [&str; 3] = ["/usr/share", "/usr/lib/ipxe", "/usr/lib/qemu"];
/// Where they put QEMU, and what it is called.
const PROGRAMS: [&str; 3] = ["/usr/bin", "/bin", "/usr/libexec"];
const QEMU: [&str; 3] = ["qemu-system-", "qemu-kvm", "kvm"];

/// Whether `value`, an attribute or the text of `node`, passes.
pub(super) fn passes(which: Passes, value: &str, node: Node<'_, '_>, granted: &Granted<'_>) -> bool {
    let restored = || granted.restored.iter().any(|path| path.to_str() == Some(value));
    match which {
        Passes::Nothing => false,
        Passes::OneOf(these) => these.contains(&value),
        Passes::Restored => restored(),
        Passes::RestoredOrPackaged => restored() || is_below(value, &PACKAGED),
        Passes::Emulator => is_emulator(value),
        Passes::Channel => is_terminal(value) || is_channel(value, node, granted),
        Passes::ChosenName => is_chosen(value),
        Passes::OfDynamicLabel => {
            let kind = node.parent_element().and_then(|label| label.attribute("type"));
            matches!(kind, None | Some("dynamic"))
        }
    }
}

/// Whether a path is spelled in full, without detours.
fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

fn is_below<P: AsRef<Path>>(value: &str, directories: &[P]) -> bool {
    let path = Path::new(value);
    is_plain(path) && directories.iter().any(|directory| path.starts_with(directory))
}

fn is_emulator(value: &str) -> bool {
    let path = Path::new(value);
    let there = path.parent().is_some_and(|parent| PROGRAMS.iter().any(|known| Path::new(known) == parent));
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let [system, exact @ ..] = QEMU;
    is_plain(path) && there && (name.starts_with(system) || exact.contains(&name))
}

fn is_terminal(value: &str) -> bool {
    let number = value.strip_prefix("/dev/pts/").unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether libvirt made this path of the channel's name, and makes another at each start.
fn is_channel(value: &str, source: Node<'_, '_>, granted: &Granted<'_>) -> bool {
    let device = source.parent_element();
    let name = device.and_then(|device| child(device, "target")).and_then(|target| target.attribute("name"));
    let of_name = name.is_some_and(|name| Path::new(value).file_name().is_some_and(|file| file == name));
    of_name && is_below(value, &granted.channels)
}

fn is_chosen(value: &str) -> bool {
    let number = ["vnet", "macvtap", "macvlan"].iter().find_map(|own| value.strip_prefix(own));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}
