//! The section `trust`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{FilePath, List, NonEmptyText};

/// What this host signs its archives with, and whose archives are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[schemars(inline)]
pub struct Trust {
    /// The file with the private key of this host, which signs each archive. Not set:
    /// `/etc/virtfold/signing-key`, of an ordinary user `~/.config/virtfold/signing-key`, where there is one;
    /// where there is none, archives are not signed. `virtfold key new` makes it.
    pub signing_key: Option<FilePath>,
    /// A file with the public keys of the hosts whose archives are taken, a line each as
    /// `virtfold key show` prints it there. Not set: `allowed-signers` beside the usual place of the key.
    /// This host's own key is always one of them.
    pub allowed_signers: Option<FilePath>,
    /// More such lines.
    pub keys: List<NonEmptyText>,
    /// Whether `verify` and `restore` refuse an archive that is unsigned, or signed with a key that is not
    /// among these for the host that it names.
    pub require_signature: bool,
}
