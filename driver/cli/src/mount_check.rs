//! Whether the directories of a backup are on the file systems that they should be on: what the command line
//! and the configuration say of it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use virtfold_backup::destinations::{Destinations, ExpectedMount};
use virtfold_backup::mount_check::{CheckedDirectory, MountRequirement, check};
use virtfold_base::error::{Error, IoContext};
use virtfold_catalog::Catalog;
use virtfold_config::{Config, Medium};
use virtfold_medium::Location;

/// What has to be mounted at the directories.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct MountArgs {
    /// Refuse unless a file system is mounted at the directory of --to or above it: at each, or at DIR
    /// [default: if one was mounted at the first use]
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    require_mount: Vec<OsString>,
    /// Accept that nothing is mounted there although something was before: at each, or at DIR
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    no_require_mount: Vec<OsString>,
    /// What the configuration calls each place, in their order
    #[arg(long, value_name = "MEDIUM", hide = true)]
    medium: Vec<String>,
}

impl MountArgs {
    fn says(places: &[OsString], path: &Path) -> bool {
        places.iter().any(|place| place.is_empty() || Path::new(place) == path)
    }

    /// Looks at the directories among the places of a backup. What the process of each has to see there,
    /// where it has to see something.
    ///
    /// # Errors
    /// Those of [`check`].
    pub(crate) fn check(
        &self,
        destinations: &Destinations<'_>,
        config: &Config,
        catalog: Option<&Catalog>,
    ) -> Result<Vec<Option<ExpectedMount>>, Error> {
        let one = |(index, place): (usize, &Location)| {
            let Some(path) = place.path() else { return Ok(None) };
            let known = of(config, path)?;
            let mounted =
                match (Self::says(&self.no_require_mount, path), Self::says(&self.require_mount, path)) {
                    (true, _) => MountRequirement::NotRequired,
                    (false, true) => MountRequirement::Required,
                    (false, false) => {
                        known.map_or(MountRequirement::SameAsFirstUse, |(_, medium)| requirement(medium))
                    }
                };
            let medium = self.medium.get(index).map(String::as_str).or(known.map(|(name, _)| name));
            expected(place, Mounted { medium, mounted }, destinations, catalog)
        };
        destinations.locations().iter().enumerate().map(one).collect()
    }
}

/// What the process of a medium has to find mounted at its destination: what was there when the backup was
/// begun may be gone.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ExpectedArgs {
    /// Where it was mounted
    #[arg(long, value_name = "DIR")]
    mount_point: Option<PathBuf>,
    /// Which file system it was
    #[arg(long, value_name = "ID", requires = "mount_point")]
    file_system: Option<String>,
    /// Another file system may be mounted there by now
    #[arg(long, requires = "mount_point")]
    any_file_system: bool,
    /// What the configuration calls the destination
    #[arg(long, value_name = "MEDIUM", requires = "mount_point")]
    called: Option<String>,
}

impl ExpectedArgs {
    /// What has to be mounted; nothing where nothing has to be.
    pub(crate) fn mount(&self) -> Option<ExpectedMount> {
        let requirement =
            if self.any_file_system { MountRequirement::Required } else { MountRequirement::SameAsFirstUse };
        Some(ExpectedMount {
            mount_point: self.mount_point.clone()?,
            file_system: self.file_system.clone(),
            requirement,
            medium: self.called.clone(),
        })
    }
}

/// What has to be mounted at a place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mounted<'a> {
    /// What the configuration calls the place.
    pub(crate) medium: Option<&'a str>,
    pub(crate) mounted: MountRequirement,
}

impl Mounted<'_> {
    /// Of a place that the command line names: what was mounted at its first use.
    pub(crate) const AS_FIRST: Self = Self { medium: None, mounted: MountRequirement::SameAsFirstUse };
}

/// Looks at a place, if it is a directory: what its process has to see there, where it has to see something.
///
/// # Errors
/// Those of [`check`].
pub(crate) fn expected(
    place: &Location,
    mounted: Mounted<'_>,
    destinations: &Destinations<'_>,
    catalog: Option<&Catalog>,
) -> Result<Option<ExpectedMount>, Error> {
    let Some(path) = place.path() else { return Ok(None) };
    let directory = CheckedDirectory { path, medium: mounted.medium, mounted: mounted.mounted };
    let found = check(&directory, catalog, &|_| destinations.mount(place))?;
    Ok(found.map(|found| ExpectedMount::of(found, &directory)))
}

/// What the configuration says of a medium.
pub(crate) fn requirement(medium: &Medium) -> MountRequirement {
    match medium.mounted {
        None => MountRequirement::SameAsFirstUse,
        Some(true) => MountRequirement::Required,
        Some(false) => MountRequirement::NotRequired,
    }
}

/// The medium that a directory is.
fn of<'a>(config: &'a Config, path: &Path) -> Result<Option<(&'a str, &'a Medium)>, Error> {
    let absolute = std::path::absolute(path).at(|| format!("cannot look at '{}'", path.display()))?;
    let media = config.media.iter().map(|(name, medium)| (name.as_str(), medium));
    let mut media = media.filter(|(_, medium)| Path::new(medium.to.as_str()) == absolute);
    Ok(media.next())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Alone {
        #[command(flatten)]
        expected: ExpectedArgs,
    }

    #[test]
    fn the_process_of_a_medium_expects_what_was_seen() {
        let all = ExpectedMount {
            mount_point: "/mnt/my disk".into(),
            file_system: Some("-odd = id".to_owned()),
            requirement: MountRequirement::Required,
            medium: Some("-nas".to_owned()),
        };
        let some = ExpectedMount {
            mount_point: "/elsewhere".into(),
            file_system: None,
            requirement: MountRequirement::SameAsFirstUse,
            medium: None,
        };
        for expected in [all, some] {
            let told = [vec!["x".into()], expected.arguments()].concat();
            assert_eq!(Alone::try_parse_from(&told).unwrap().expected.mount(), Some(expected), "{told:?}");
        }
        assert_eq!(ExpectedArgs::default().mount(), None);
    }
}
