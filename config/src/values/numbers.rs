//! Numbers with bounds.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer};
use serde::{Serialize, Serializer};

use super::whole;

/// A number from 1 to `$max`.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $max:literal, $example:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(usize);

        impl $name {
            /// The number.
            pub const fn get(self) -> usize {
                self.0
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let number = whole(text).and_then(|number| usize::try_from(number).ok());
                number
                    .filter(|number| (1..=$max).contains(number))
                    .map(Self)
                    .ok_or_else(|| format!("'{text}' is not a number from 1 to {}", $max))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.0.serialize(serializer)
            }
        }

        value_in!(
            $name,
            concat!("a number from 1 to ", $max),
            json_schema!({
                "title": concat!("a number from 1 to ", $max),
                "type": "integer",
                "minimum": 1,
                "maximum": $max,
                "examples": [$example],
            })
        );
    };
}

number!(
    /// How many backups run at once.
    Concurrency, 64, 2
);
number!(
    /// How often something is tried.
    Attempts, 100, 3
);
number!(
    /// How many backups are kept.
    Count, 10_000, 7
);
number!(
    /// Archives of a chain.
    ChainLength, 200, 30
);
number!(
    /// Threads that read, digest and compress.
    Workers, 256, 2
);

impl Concurrency {
    /// Two at once.
    pub(crate) const TWO: Self = Self(2);
}
