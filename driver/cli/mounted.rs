//! Whether the directories of a backup are on the file systems that they should be on: what the command line and the configuration say of it.

use std::ffi::OsString;
use std::path::Path;

use virtfold::catalog::{Catalog, Nothing};
use virtfold::error::{Error, IoContext};
use virtfold::job::mounted::{Mounted, Place, check};
use virtfold::medium::Location;
use virtfold_config::{Config, Medium};

/// What has to be mounted at the directories.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct MountArgs {
    /// Only where a file system is mounted at the directory of --to, or above it: at each, or at this one
    /// [default: where one was when it was first used]
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    require_mount: Vec<OsString>,
    /// Also where nothing is mounted there though something was before: at each, or at this one
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

    /// Looks at the directories among `places`.
    ///
    /// # Errors
    /// Those of [`check`].
    pub(crate) fn check(
        &self,
        places: &[Location],
        config: &Config,
        catalog: Option<&Catalog>,
    ) -> Result<(), Error> {
        for (index, path) in
            places.iter().enumerate().filter_map(|(index, place)| Some((index, place.path()?)))
        {
            let known = of(config, path)?;
            let mounted =
                match (Self::says(&self.no_require_mount, path), Self::says(&self.require_mount, path)) {
                    (true, _) => Mounted::No,
                    (false, true) => Mounted::Yes,
                    (false, false) => known.map_or(Mounted::AsBefore, |(_, medium)| wish(medium)),
                };
            let medium = self.medium.get(index).map(String::as_str).or(known.map(|(name, _)| name));
            check(&Place { path, medium, mounted }, catalog)?;
        }
        Ok(())
    }
}

/// What the configuration says of a medium.
pub(crate) fn wish(medium: &Medium) -> Mounted {
    match medium.mounted {
        None => Mounted::AsBefore,
        Some(true) => Mounted::Yes,
        Some(false) => Mounted::No,
    }
}

/// The medium that a directory is.
fn of<'a>(config: &'a Config, path: &Path) -> Result<Option<(&'a str, &'a Medium)>, Error> {
    let absolute = std::path::absolute(path).at(|| format!("cannot look at '{}'", path.display()))?;
    let media = config.media.iter().map(|(name, medium)| (name.as_str(), medium));
    let mut media = media.filter(|(_, medium)| Path::new(medium.to.as_str()) == absolute);
    Ok(media.next())
}

/// The catalog of a state directory, where there is one.
///
/// # Errors
/// It can't be used.
pub(crate) fn catalog(state: &Path) -> Result<Option<Catalog>, Error> {
    if Nothing::is_in(state) { Ok(None) } else { Catalog::open(state).map(Some) }
}
