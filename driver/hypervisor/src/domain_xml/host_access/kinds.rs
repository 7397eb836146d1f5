//! The kinds of access to the host, by the names that `--allow` takes.

use std::fmt;

macro_rules! kinds {
    ($($kind:ident $name:literal $meaning:literal)*) => {
        /// What a definition has of its host.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum HostAccess {
            $(#[doc = $meaning] $kind,)*
        }

        impl HostAccess {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// As `--allow` names it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            /// What it is, for documents.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$kind => $meaning,)* }
            }
        }
    };
}

kinds! {
    BootFile "boot-file" "Firmware, kernel, NVRAM, ACPI table or option ROM that is not the archive's."
    Cdrom "cdrom" "A medium in a drive for CDs or floppies; without this the drive is emptied."
    CharacterDevice "character-device" "A file, device, pipe or socket behind a serial line, console or channel."
    Disk "disk" "A disk that is not in the archive."
    Dump "dump" "The guest's memory is written to the host when it crashes."
    Emulator "emulator" "A program other than the distribution's QEMU."
    File "file" "Another file of the host."
    Filesystem "filesystem" "A directory of the host for the guest."
    FwCfg "fw-cfg" "A file whose content the guest can read."
    HostDevice "host-device" "A device of the host."
    HostInfo "host-info" "What the host tells of itself."
    Hypervisor "hypervisor" "Another hypervisor than QEMU, or a container."
    Listen "listen" "A port that is reached from other machines."
    LogFile "log-file" "A file of the host that is written to."
    Namespace "namespace" "Arguments for QEMU (`qemu:commandline`) and whatever else stands in a foreign namespace."
    Network "network" "A network interface other than one on a bridge, a network of libvirt's or the user's own."
    NetworkDisk "network-disk" "A disk on another machine."
    Resources "resources" "A share of the host that others then lack: real-time priority, caches, control groups."
    Script "script" "A program that the host runs."
    Seclabel "seclabel" "A label other than the one that libvirt chooses: user, SELinux, AppArmor."
    Secret "secret" "A secret that libvirt keeps."
    SharedMemory "shared-memory" "Memory that is shared with others."
    Unknown "unknown" "An element or attribute that virtfold does not know."
}

impl fmt::Display for HostAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
