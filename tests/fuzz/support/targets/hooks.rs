//! What stands between libvirt's hooks and the service: events, guards, domain XML. Whatever parses is
//! written again as it was read, and a scan finds nothing that the XML does not have.

use super::super::flags;
use virtfold_hooks::domain;
use virtfold_hooks::event::{Event, EventXml};
use virtfold_hooks::start_lock::{self, LockedDisks};

/// One input.
pub fn run(data: &[u8]) {
    let Some((flags, data)) = flags(data) else { return };
    match flags & 3 {
        0 => {
            let Ok(event) = Event::parse(data) else { return };
            let again = event.encode().expect("what was read can be written");
            let again = Event::parse(&again).expect("what was written can be read");
            // An XML whose escapes make the file too large is left out.
            let mut without = event.clone();
            without.xml = EventXml::TooLarge {};
            assert!(again == event || again == without);
        }
        1 => {
            let Some(guarded) = LockedDisks::parse(data) else { return };
            assert!(guarded.refusal().contains(&guarded.reason));
            let guards = [guarded];
            if let Some(name) = guards[0].name.clone() {
                assert!(start_lock::conflict(&guards, &name, &domain::scan(data)).is_some());
            }
        }
        _ => {
            let found = domain::scan(data);
            assert!(found.disks.iter().all(|disk| !disk.path.is_empty()));
            // Escapes are longer than what they stand for, but for what is no UTF-8 and becomes three bytes.
            let paths: usize = found.disks.iter().map(|disk| disk.path.len()).sum();
            assert!(paths <= 3 * data.len());
        }
    }
}
