//! Addresses: of places for archives, and of the metrics' port.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer};
use serde::{Serialize, Serializer};

/// What kind of place archives go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediumKind {
    /// A directory.
    Directory,
    /// An object store.
    ObjectStore,
    /// A tape drive.
    Tape,
}

/// A place for archives, in the form that `--to` takes. The driver has the full grammar of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MediumAddress(String);

value!(
    MediumAddress,
    "a directory, s3://BUCKET/PREFIX or tape:DEVICE",
    json_schema!({
        "title": "the absolute path of a directory, `s3://BUCKET/PREFIX` or `tape:DEVICE`",
        "type": "string",
        "pattern": "^(/|s3://.|tape:/)",
        "examples": ["/backup", "s3://bucket/vm", "tape:/dev/nst0"],
    })
);

impl MediumAddress {
    /// The address.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What kind of place it is.
    pub fn kind(&self) -> MediumKind {
        if self.0.starts_with("s3:") {
            MediumKind::ObjectStore
        } else if self.0.starts_with("tape:") {
            MediumKind::Tape
        } else {
            MediumKind::Directory
        }
    }
}

impl FromStr for MediumAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(why.to_owned());
        let bucket = text.strip_prefix("s3://").map(|rest| rest.split('/').next().unwrap_or_default());
        // What follows is not repeated before it is sure that it holds no secret.
        if text.split_once("://").is_some_and(|(_, rest)| {
            let host = rest.split('/').next().unwrap_or_default();
            host.contains(['@', ':'])
        }) {
            return wrong(
                "an address must not hold a user, a password or a key; put them into an environment-file",
            );
        }
        if text.chars().any(char::is_control) {
            return wrong("an address has no control characters");
        }
        match (bucket, text.strip_prefix("tape:")) {
            (Some(""), _) => wrong("the bucket is missing; write s3://BUCKET/PREFIX"),
            (_, Some(device)) if device.contains('#') => {
                wrong("this names an archive on a tape; remove # and what follows")
            }
            (_, Some(device)) if !device.starts_with('/') => {
                Err(format!("'{text}' has no device; write the whole path, for example tape:/dev/nst0"))
            }
            (Some(_), _) | (_, Some(_)) => Ok(Self(text.to_owned())),
            (None, None) if text.starts_with('/') => Ok(Self(text.to_owned())),
            (None, None) => Err(format!(
                "invalid destination '{text}'; write the absolute path of a directory, s3://BUCKET/PREFIX or tape:/dev/nst0"
            )),
        }
    }
}

impl fmt::Display for MediumAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An address and port of this host alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopbackAddress(SocketAddr);

value!(
    LoopbackAddress,
    "an address such as 127.0.0.1:9758",
    json_schema!({
        "title": "a loopback address and a port",
        "type": "string",
        "pattern": r"^(127\.[0-9.]+|\[::1\]):0*[1-9][0-9]*$",
        "examples": ["127.0.0.1:9758", "[::1]:9758"],
    })
);

impl LoopbackAddress {
    /// The address.
    pub const fn get(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for LoopbackAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address: SocketAddr = text.parse().map_err(|_| {
            format!("'{text}' is not an address and a port; write for example 127.0.0.1:9758")
        })?;
        if !address.ip().is_loopback() {
            return Err(format!(
                "'{text}' can be reached from other hosts; metrics are served on 127.0.0.1 or [::1] only"
            ));
        }
        if address.port() == 0 {
            return Err("port 0 would be a different one at each start; choose one".to_owned());
        }
        Ok(Self(address))
    }
}

impl fmt::Display for LoopbackAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
