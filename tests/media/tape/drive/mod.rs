//! A tape drive in software: a logical unit that answers SCSI stream commands (`ssc`), behind vhost-user-scsi
//! (`scsi`, `vhost`), so that a Linux kernel in user mode has a real `st` device over it.
//!
//! The drive lives in the test's own process and outlives every machine that is plugged into it. Faults,
//! cartridges and what is on them are at hand through [`TapeDrive::unit`].

mod scsi;
mod sense;
mod ssc;
mod vhost;

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

pub(crate) use ssc::{Cartridge, Fault, Object, Unit};

/// A drive that machines plug into through a socket.
#[derive(Clone)]
pub(crate) struct TapeDrive(Arc<Mutex<Unit>>);

impl TapeDrive {
    /// Starts a drive with these cartridges on its shelf; none is loaded.
    pub(crate) fn start(socket: &Path, shelf: Vec<Cartridge>) -> Self {
        let drive = Self(Arc::new(Mutex::new(Unit::new(shelf))));
        let listener = UnixListener::bind(socket).unwrap();
        let unit = Arc::clone(&drive.0);
        // Ends with the test's process: nothing of it outlives that.
        std::thread::spawn(move || {
            for machine in listener.incoming() {
                unit.lock().unwrap().power_on();
                let target = scsi::Target::new(Arc::clone(&unit));
                if let Err(error) = vhost::Connection::new(machine.unwrap(), target).run() {
                    eprintln!("the tape drive lost its machine: {error}");
                }
            }
        });
        drive
    }

    /// The logical unit: cartridges, faults, counts.
    pub(crate) fn unit(&self) -> MutexGuard<'_, Unit> {
        self.0.lock().unwrap()
    }
}
