//! What can be chosen for a backup: one set of options from the command line and the configuration to the
//! engine.
//!
//! Imports: `archive`, `medium`, for their own options.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use virtfold_archive::crypt::Recipients;
use virtfold_archive::sign::SigningKey;
use virtfold_archive::stream::Compression;
use virtfold_archive::table::Layout;
use virtfold_base::units::BlockSize;
use virtfold_medium::RateLimit;

/// How a backup is made.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// How the archive is compressed.
    pub compression: Compression,
    /// Whom it is encrypted to; without them, it is not.
    pub encrypt_to: Option<Recipients>,
    /// What it is signed with; without it, it is not.
    pub signing_key: Option<Arc<SigningKey>>,
    /// Full, or what changed since an earlier backup.
    pub kind: BackupKindRule,
    /// How it is found what changed.
    pub changes: ChangeDetection,
    /// Archives of a chain at most, its full one included.
    pub max_chain: u32,
    /// Used blocks or all.
    pub layout: Layout,
    /// The granularity; without it, each source's own.
    pub block_size: Option<BlockSize>,
    /// Whether blocks of zeros are looked for.
    pub detect_zeroes: DetectZeroes,
    /// Bytes a second at most.
    pub limit_rate: Option<RateLimit>,
    /// Worker threads.
    pub workers: usize,
    /// What is done with what a killed backup of the same has left.
    pub resume: ResumePolicy,
    /// Of a domain: targets of disks to leave out.
    pub exclude: Vec<String>,
    /// Of a domain: whether the agent makes the guest's file systems clean.
    pub quiesce: QuiesceMode,
    /// Of a domain: how long the guest may be paused at a time.
    pub pause_budget: Duration,
    /// Of a domain: where overlays go, absolute; without it, beside the images.
    pub overlay_dir: Option<PathBuf>,
    /// Of a domain: bytes that stay free where overlays lie.
    pub min_free: u64,
}

impl Default for BackupOptions {
    /// What the configuration has where it says nothing.
    fn default() -> Self {
        Self {
            compression: Compression::Zstd { level: 3 },
            encrypt_to: None,
            signing_key: None,
            kind: BackupKindRule::Full,
            changes: ChangeDetection::Auto,
            max_chain: MAX_CHAIN,
            layout: Layout::Compact,
            block_size: None,
            detect_zeroes: DetectZeroes::default(),
            limit_rate: None,
            workers: 2,
            resume: ResumePolicy::IfPossible,
            exclude: Vec::new(),
            quiesce: QuiesceMode::Auto,
            pause_budget: Duration::from_secs(2),
            overlay_dir: None,
            min_free: 1 << 30,
        }
    }
}

/// Archives of a chain, where nobody says how many.
pub const MAX_CHAIN: u32 = 30;

/// What a backup continues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackupKindRule {
    /// Nothing.
    #[default]
    Full,
    /// The newest backup of the same that all destinations have.
    Incremental,
    /// The newest full one.
    Differential,
}

/// How it is found what changed since the parent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChangeDetection {
    /// By the best method that can be used, for each disk.
    #[default]
    Auto,
    /// By comparing all that is used.
    Compare,
}

/// Whether a disk is read once more before it is copied, to leave out blocks that are zeros though the image
/// calls them data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// Where nothing else tells where zeros are: of block devices, and of raw files without holes.
    #[default]
    Auto,
    /// It is.
    On,
    /// It is not.
    Off,
}

/// Whether the agent freezes the guest's file systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuiesceMode {
    /// By the agent where it answers.
    Auto,
    /// By the agent, or no backup.
    Yes,
    /// Never.
    No,
}

/// What is done with a record that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumePolicy {
    /// It is gone on with, if that can be.
    IfPossible,
    /// It is gone on with, or nothing is done.
    Required,
    /// It is discarded.
    Never,
}
