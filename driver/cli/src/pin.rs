//! `virtfold pin` and `unpin`: archives that stay, whatever the rules say.

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;
use virtfold_backup::inspect;
use virtfold_base::error::{Error, ErrorKind};
use virtfold_catalog::{Catalog, copy_name};
use virtfold_medium::{Location, TapeArchive};

use super::args;
use super::domain::connection::StateFlag;
use super::encryption::IdentityArgs;
use super::exit::ExitStatus;
use super::report::{JsonFlag, OutputFormat, StdoutUse, printable, result};

/// Keep an archive whatever the rules of 'prune' say
///
/// Recorded in the catalog, for all copies of the archive. What the archive depends on is kept, too. 'list'
/// and 'prune --dry-run' show pinned archives.
///
/// Pins are in the catalog of this host alone. If the catalog is lost, so are they: 'list --remember' does
/// not bring them back. Pin again before the next 'prune'. A renamed archive is never pruned, whatever
/// happens to the catalog.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold pin /backup/web-20261122T161055Z-e78234c8.tar.zst
  virtfold pin s3://backups/vm/host1/web/web-20261122T161055Z-e78234c8.tar.zst")]
pub(crate) struct PinArgs {
    #[command(flatten)]
    archives: ArchiveArgs,
}

/// Unpin archives: the rules of 'prune' apply to them again
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold unpin /backup/web-20261122T161055Z-e78234c8.tar.zst")]
pub(crate) struct UnpinArgs {
    #[command(flatten)]
    archives: ArchiveArgs,
}

#[derive(Debug, clap::Args)]
struct ArchiveArgs {
    /// The archives
    #[arg(value_name = "ARCHIVE", required = true, value_parser = args::location())]
    archives: Vec<Location>,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    state: StateFlag,
    #[command(flatten)]
    json: JsonFlag,
}

/// What became of an archive.
#[derive(Serialize)]
struct Pinned {
    archive: String,
    id: Uuid,
    pinned: bool,
}

/// Runs `pin`.
pub(crate) fn pin(args: &PinArgs) -> Result<ExitStatus> {
    let catalog = Catalog::open(&args.archives.state.path()?)?;
    let found = args.archives.find(&catalog)?;
    for (_, id) in &found {
        catalog.pin(*id, Timestamp::now())?;
    }
    args.archives.tell(found, &catalog)
}

/// Runs `unpin`.
pub(crate) fn unpin(args: &UnpinArgs) -> Result<ExitStatus> {
    let catalog = Catalog::open(&args.archives.state.path()?)?;
    let found = args.archives.find(&catalog)?;
    for (name, id) in &found {
        if !catalog.unpin(*id)? {
            return Err(Error::new(ErrorKind::NotFound, format!("'{name}' is not pinned")).into());
        }
    }
    args.archives.tell(found, &catalog)
}

impl ArchiveArgs {
    /// The ids, all of them before anything is noted.
    fn find(&self, catalog: &Catalog) -> Result<Vec<(String, Uuid)>> {
        let identities = self.identity.load()?;
        let id = |archive: &Location| -> Result<(String, Uuid), Error> {
            if let Location::Tape(address) = archive {
                return Ok((archive.to_string(), on_tape(archive, address.archive.as_ref())?));
            }
            // An encrypted one that no identity opens, and one that is gone, the catalog may know.
            let known = || Ok::<_, Error>(catalog.copy(&copy_name(archive)?)?.map(|copy| copy.archive));
            let id = match inspect::glance(archive, &identities) {
                Ok(glance) => match glance.head {
                    Some(head) => Some(head.archive),
                    None => known()?,
                },
                Err(error) if error.kind() == ErrorKind::NotFound => Some(known()?.ok_or(error)?),
                Err(error) => return Err(error),
            };
            let unknown = || {
                Error::new(ErrorKind::Locked, format!("'{archive}' can't be identified")).with_hint(
                    "--identity opens an encrypted one; 'virtfold verify' says what is wrong with another",
                )
            };
            Ok((archive.to_string(), id.ok_or_else(unknown)?))
        };
        Ok(self.archives.iter().map(id).collect::<Result<_, _>>()?)
    }

    fn tell(&self, found: Vec<(String, Uuid)>, catalog: &Catalog) -> Result<ExitStatus> {
        let pins = catalog.pins()?;
        let told = found.into_iter().map(|(archive, id)| Pinned { archive, id, pinned: pins.contains(&id) });
        let told: Vec<Pinned> = told.collect();
        let line = |one: &Pinned| {
            let verb = if one.pinned { "pinned" } else { "not pinned any more" };
            format!("{}: {verb}", printable(&one.archive))
        };
        let text = told.iter().map(line).collect::<Vec<_>>().join("\n");
        result(
            OutputFormat::from_flag(&self.json),
            StdoutUse::Free,
            &serde_json::json!({ "archives": told }),
            &text,
        )?;
        Ok(ExitStatus::Done)
    }
}

/// The id of an archive on tape is in its name.
fn on_tape(location: &Location, archive: Option<&TapeArchive>) -> Result<Uuid, Error> {
    let id = archive.and_then(|archive| match archive {
        TapeArchive::Id(id) => id.parse().ok(),
        TapeArchive::Latest => None,
    });
    id.ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("'{location}' does not have the whole id of an archive"))
            .with_hint("write tape:DEVICE#ID; 'virtfold list tape:DEVICE' shows the ids")
    })
}
