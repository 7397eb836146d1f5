//! The steps by which a disk gets back on its base: what `decide` chooses, `messages` words and the others
//! do.

/// The next step of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UnfreezeStep {
    /// Nothing: its overlay is gone.
    Nothing,
    /// Commit while the guest runs, and pivot.
    Commit,
    /// The guest is on its base; this is to be done with the overlay.
    DropOverlay(UnusedOverlay),
    /// The guest is on its base, and libvirt believes otherwise until the guest's next start.
    Stuck,
    /// Nothing runs: write the overlay into the base.
    OfflineCommit,
    /// Nothing runs, and base and overlay are the same: take the overlay off what the next start uses.
    RemoveFromConfig,
    /// Somebody has a file open; see again later.
    Wait(String),
    /// A person has to decide.
    AskAdministrator(String),
}

/// What is to be done with an overlay that nothing uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnusedOverlay {
    /// The base has everything.
    Remove,
    /// It may hold what the base has not.
    Quarantine,
}
