//! Which libvirt, and where virtfold keeps its own things: options that several verbs have.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use virtfold_backup::attachments::LibvirtDirectories;
use virtfold_base::error::{Error, ErrorKind, IoContext};
use virtfold_hooks::HookOwner;
use virtfold_hypervisor::Hypervisor;

/// Where virtfold keeps its own things when nobody says otherwise.
const STATE: &str = "/var/lib/virtfold";

/// The option that names the libvirt.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ConnectFlag {
    /// The libvirt to connect to; it must be this host's [default: $VIRTFOLD_CONNECT, else
    /// $LIBVIRT_DEFAULT_URI, else qemu:///system]
    #[arg(long, short = 'c', value_name = "URI", help_heading = "Domains")]
    connect: Option<String>,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The hypervisor.
    pub(crate) hypervisor: Box<dyn Hypervisor>,
    /// How a watchdog process reaches the same one.
    pub(crate) uri: String,
}

impl ConnectFlag {
    /// Connects.
    ///
    /// # Errors
    /// A URI that is not this host's; libvirt's no; a build without libvirt.
    pub(crate) fn open(&self) -> Result<Connection, Error> {
        let (uri, origin) = self.uri();
        open(&uri).map_err(|error| match error.kind() {
            // The URI itself is wrong: say where it came from.
            ErrorKind::Usage | ErrorKind::Unsupported if origin != "--connect" => {
                error.within(format!("the libvirt of {origin} can't be used"))
            }
            _ => error,
        })
    }

    /// Whose libvirt it is.
    pub(crate) fn whose(&self) -> HookOwner {
        HookOwner::of(&self.uri().0)
    }

    /// Its URI, and where that came from.
    pub(crate) fn uri(&self) -> (String, &'static str) {
        let from = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        match &self.connect {
            Some(uri) => (uri.clone(), "--connect"),
            None => match (from("VIRTFOLD_CONNECT"), from("LIBVIRT_DEFAULT_URI")) {
                (Some(uri), _) => (uri, "VIRTFOLD_CONNECT"),
                (None, Some(uri)) => (uri, "LIBVIRT_DEFAULT_URI"),
                (None, None) => ("qemu:///system".to_owned(), "the default"),
            },
        }
    }
}

/// Connects to the libvirt at a URI.
#[cfg(feature = "libvirt")]
pub(crate) fn open(uri: &str) -> Result<Connection, Error> {
    use virtfold_hypervisor::libvirt::{Libvirt, LocalUri};
    let local = LocalUri::parse(uri)?;
    Ok(Connection { hypervisor: Box::new(Libvirt::open(local)?), uri: uri.to_owned() })
}

/// This build knows no libvirt.
#[cfg(not(feature = "libvirt"))]
pub(crate) fn open(_uri: &str) -> Result<Connection, Error> {
    let error =
        Error::new(ErrorKind::Unsupported, "this virtfold was built without libvirt and knows no domains");
    Err(error.with_hint(
        "build it with the default features on a host that has libvirt; 'backup --image' works without",
    ))
}

/// Where the libvirt at `uri` keeps firmware variables and TPM states; `given` is its state directory where a
/// person says it.
///
/// # Errors
/// A session's libvirt of a user who has no home.
pub(crate) fn places(given: Option<&Path>, uri: &str) -> Result<LibvirtDirectories, Error> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(state) = given.map(Path::to_owned).or_else(|| variable("VIRTFOLD_LIBVIRT_DIR")) {
        return Ok(LibvirtDirectories::system(&absolute(&state)?));
    }
    if HookOwner::of(uri) == HookOwner::System {
        return Ok(LibvirtDirectories::system(Path::new("/var/lib/libvirt")));
    }
    Ok(LibvirtDirectories::session(
        &in_home("XDG_CONFIG_HOME", ".config")?,
        &in_home("XDG_DATA_HOME", ".local/share")?,
    ))
}

/// A directory of this user: the one that the variable names, else the usual one in his home.
///
/// # Errors
/// He has no home.
pub(crate) fn in_home(name: &str, usual: &str) -> Result<PathBuf, Error> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    variable(name).or_else(|| variable("HOME").map(|home| home.join(usual))).ok_or_else(|| {
        let what = format!("neither {name} nor HOME is set; qemu:///session needs one of them");
        Error::new(ErrorKind::Usage, what)
    })
}

/// Where virtfold keeps its own things beside a libvirt when nobody says otherwise.
fn usual_state(whose: HookOwner) -> Result<PathBuf, Error> {
    match whose {
        HookOwner::System => Ok(PathBuf::from(STATE)),
        HookOwner::User => Ok(in_home("XDG_STATE_HOME", ".local/state")?.join("virtfold")),
    }
}

/// The libvirt that the environment names, of verbs that speak to none.
pub(crate) fn whose() -> HookOwner {
    HookOwner::of(&ConnectFlag { connect: None }.uri().0)
}

/// The option that names the state directory.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StateFlag {
    /// Where virtfold keeps its journal, its catalog and its locks [default: $VIRTFOLD_STATE_DIR, else
    /// /var/lib/virtfold, or ~/.local/state/virtfold for qemu:///session]
    #[arg(long, value_name = "DIR", help_heading = "Domains")]
    state_dir: Option<PathBuf>,
}

impl StateFlag {
    /// The option that says this directory.
    pub(crate) fn argument(path: &Path) -> [OsString; 2] {
        ["--state-dir".into(), path.into()]
    }

    /// The directory where the environment says which libvirt it is, absolute.
    ///
    /// # Errors
    /// There is no working directory to begin from.
    pub(crate) fn path(&self) -> Result<PathBuf, Error> {
        self.path_of(whose())
    }

    /// The directory beside a libvirt, absolute: libvirt knows nothing of this process's working directory.
    ///
    /// # Errors
    /// There is no working directory to begin from.
    pub(crate) fn path_of(&self, whose: HookOwner) -> Result<PathBuf, Error> {
        let from_environment =
            || std::env::var_os("VIRTFOLD_STATE_DIR").filter(|v| !v.is_empty()).map(PathBuf::from);
        let named = self.state_dir.clone().or_else(from_environment);
        absolute(&named.map_or_else(|| usual_state(whose), Ok)?)
    }
}

/// A path that means the same to libvirt.
///
/// # Errors
/// There is no working directory to begin from.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).at(|| format!("cannot make '{}' absolute", path.display()))
}
