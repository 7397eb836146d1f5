//! The options of encryption: whom an archive is encrypted to, and which key files open one.
//!
//! Recipients are text up to the library, which reads them: a value that the command line's parser refuses it
//! repeats, and this one may be a secret key that was given by mistake. Of identities the command line has
//! the files' names only.

use std::ffi::OsString;
use std::path::PathBuf;

use virtfold_archive::crypt::{Identities, Recipients};
use virtfold_base::error::Error;
use virtfold_config::Defaults;

/// The options of verbs that write archives.
#[derive(Clone, Default, clap::Args)]
pub(crate) struct EncryptArgs {
    /// Encrypt the archive to this age recipient (age1...); repeatable, and each recipient can read it alone.
    /// The archive is then an age file, .tar.age or .tar.zst.age [default: the configuration's; not
    /// encrypted]
    #[arg(long, value_name = "RECIPIENT", help_heading = "Encryption")]
    encrypt_to: Vec<String>,
    /// Encrypt the archive to the recipients in this file, one a line
    #[arg(long, value_name = "FILE", help_heading = "Encryption")]
    recipients: Option<PathBuf>,
    /// Do not encrypt, even if the configuration says so
    #[arg(long, conflicts_with_all = ["encrypt_to", "recipients"], help_heading = "Encryption")]
    no_encryption: bool,
}

impl std::fmt::Debug for EncryptArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EncryptArgs({} recipients)", self.encrypt_to.len())
    }
}

impl EncryptArgs {
    /// The recipients, by the command line, else by the configuration.
    ///
    /// # Errors
    /// Those of [`Recipients::gather`].
    pub(crate) fn recipients(&self, defaults: &Defaults) -> Result<Option<Recipients>, Error> {
        if self.no_encryption {
            return Ok(None);
        }
        if !self.encrypt_to.is_empty() || self.recipients.is_some() {
            return Recipients::gather(&self.encrypt_to, self.recipients.as_deref());
        }
        let given = defaults.encrypt_to.as_ref().map(virtfold_config::RecipientList::as_slice);
        let file = defaults.recipients.as_ref().map(virtfold_config::FilePath::as_path);
        Recipients::gather(given.unwrap_or_default(), file)
    }
}

/// The option of verbs that read archives.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct IdentityArgs {
    /// A key file of age-keygen, with mode 600, that opens the encrypted archive; repeatable
    #[arg(long, value_name = "FILE", help_heading = "Encryption")]
    identity: Vec<PathBuf>,
}

impl IdentityArgs {
    /// The options that say the same.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let one = |file: &PathBuf| {
            // With `=`: a file's name may begin with a hyphen.
            let mut argument = OsString::from("--identity=");
            argument.push(file);
            argument
        };
        self.identity.iter().map(one).collect()
    }

    /// The keys in all files.
    ///
    /// # Errors
    /// Those of [`Identities::load`].
    pub(crate) fn load(&self) -> Result<Identities, Error> {
        Identities::load(&self.identity)
    }
}
