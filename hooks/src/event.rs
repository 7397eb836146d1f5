//! One event: what libvirt told a hook, as a file of the spool.
//!
//! The file is one JSON object in UTF-8, at most [`MAX_FILE`] bytes, with exactly these keys:
//!
//! | key | value |
//! |---|---|
//! | `version` | 1; a reader refuses any other |
//! | `time` | microseconds since 1970-01-01 UTC by the host's clock, when the hook was called |
//! | `hook` | `qemu`, `network` or `daemon`: which of libvirt's hooks it was |
//! | `object` | the first argument: the name of the guest or network, `-` for the daemon |
//! | `operation` | the second: `prepare`, `start`, `started`, `stopped`, `release`, `migrate`, `reload`, ... |
//! | `sub-operation` | the third: `begin`, `end`, ... |
//! | `extra` | the fourth: `-`, or for example why the guest stopped |
//! | `xml` | `{"state": "whole", "text": "<domain ..."}`, or without `text` a state that says why: `absent` (nothing on standard input), `too-large` (over 4 MiB), `late` (it did not end in time), `not-text` (not UTF-8) |
//!
//! An argument longer than [`MAX_ARGUMENT`] bytes is cut.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The largest domain XML that an event carries, bytes.
pub const MAX_XML: usize = 4 << 20;
/// The largest file, bytes: such an XML, with each of its quotes and line ends escaped, and the rest.
pub const MAX_FILE: usize = 2 * MAX_XML + (64 << 10);
/// The longest argument, bytes.
pub const MAX_ARGUMENT: usize = 4096;

const VERSION: u32 = 1;

/// Which of libvirt's hooks was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    /// A guest's life.
    Qemu,
    /// A virtual network's life.
    Network,
    /// libvirtd's own life.
    Daemon,
}

/// What came on standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case", deny_unknown_fields)]
pub enum EventXml {
    /// Nothing.
    Absent {},
    /// All of it.
    Whole {
        /// The XML as libvirt wrote it.
        text: String,
    },
    /// More than [`MAX_XML`] bytes.
    TooLarge {},
    /// It did not end in time.
    Late {},
    /// It is not UTF-8.
    NotText {},
}

impl EventXml {
    /// The XML that was read to its end.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) if text.is_empty() => Self::Absent {},
            Ok(text) if text.len() > MAX_XML => Self::TooLarge {},
            Ok(text) => Self::Whole { text },
            Err(_) => Self::NotText {},
        }
    }
}

/// What libvirt said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Event {
    version: u32,
    /// Microseconds since 1970-01-01 UTC.
    pub time: u64,
    /// Which hook.
    pub hook: Hook,
    /// Name of the guest or network.
    pub object: String,
    /// What is about to happen or has happened.
    pub operation: String,
    /// Its stage.
    pub sub_operation: String,
    /// More of it.
    pub extra: String,
    /// The XML of the guest or network.
    pub xml: EventXml,
}

/// Why bytes are not an event.
#[derive(Debug, PartialEq, Eq)]
pub struct NotAnEvent(String);

impl fmt::Display for NotAnEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotAnEvent {}

impl Event {
    /// [`Event::at`], now.
    pub fn now(hook: Hook, arguments: &[String], xml: EventXml) -> Self {
        Self::at(SystemTime::now(), hook, arguments, xml)
    }

    /// The event for which the hook was called at `time`. `arguments` are object, operation, sub-operation
    /// and extra; missing ones are `-`.
    pub fn at(time: SystemTime, hook: Hook, arguments: &[String], xml: EventXml) -> Self {
        let argument = |i: usize| arguments.get(i).map_or_else(|| "-".to_owned(), |text| cut(text));
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            version: VERSION,
            time: u64::try_from(since.as_micros()).unwrap_or(u64::MAX),
            hook,
            object: argument(0),
            operation: argument(1),
            sub_operation: argument(2),
            extra: argument(3),
            xml,
        }
    }

    /// The file's bytes. An XML that would make the file too large is left out, and the event says so.
    ///
    /// # Errors
    /// None that is known; the JSON writer's own.
    pub fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let bytes = serde_json::to_vec(self)?;
        if bytes.len() <= MAX_FILE {
            return Ok(bytes);
        }
        serde_json::to_vec(&Self { xml: EventXml::TooLarge {}, ..self.clone() })
    }

    /// Reads a file's bytes; any bytes may be given.
    ///
    /// # Errors
    /// A sentence that says what is wrong with them.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotAnEvent> {
        #[derive(Deserialize)]
        struct Head {
            version: u64,
        }
        let not = |why: String| Err(NotAnEvent(why));
        if bytes.len() > MAX_FILE {
            return not(format!("it has {} bytes; {MAX_FILE} are the most", bytes.len()));
        }
        let head: Head = serde_json::from_slice(bytes).map_err(|error| NotAnEvent(error.to_string()))?;
        if head.version != u64::from(VERSION) {
            return not(format!("it is of version {}; this virtfold knows {VERSION}", head.version));
        }
        let event: Self = serde_json::from_slice(bytes).map_err(|error| NotAnEvent(error.to_string()))?;
        let arguments = [&event.object, &event.operation, &event.sub_operation, &event.extra];
        if arguments.iter().any(|argument| argument.len() > MAX_ARGUMENT) {
            return not("one of its arguments is too long".to_owned());
        }
        match &event.xml {
            EventXml::Whole { text } if text.len() > MAX_XML => not("its XML is too large".to_owned()),
            _ => Ok(event),
        }
    }
}

/// As much of the text's start as an argument may have.
fn cut(text: &str) -> String {
    text.get(..text.floor_char_boundary(MAX_ARGUMENT)).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(arguments: &[String], xml: EventXml) -> Event {
        Event::now(Hook::Qemu, arguments, xml)
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_parsed(arguments in proptest::collection::vec(".{0,20}", 0..6), xml in ".{0,200}") {
            let event = event(&arguments, EventXml::from_bytes(xml.into_bytes()));
            prop_assert_eq!(Event::parse(&event.encode().unwrap()), Ok(event));
        }

        #[test]
        fn no_bytes_make_it_panic(cuts in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..9)) {
            let mut bytes = event(&["vm".into()], EventXml::from_bytes(b"<domain/>".to_vec())).encode().unwrap();
            for (at, new) in cuts {
                let at = at.index(bytes.len());
                bytes[at] = new;
            }
            if let Ok(event) = Event::parse(&bytes) {
                prop_assert_eq!(Event::parse(&event.encode().unwrap()), Ok(event));
            }
        }
    }

    #[test]
    fn bounds_hold() {
        let long = event(&["ö".repeat(MAX_ARGUMENT)], EventXml::Absent {});
        assert_eq!(long.object.len(), MAX_ARGUMENT);
        // One control character takes six bytes: such an XML does not fit and is left out.
        let wild = event(&[], EventXml::from_bytes(vec![1; MAX_XML]));
        let bytes = wild.encode().unwrap();
        assert_eq!(Event::parse(&bytes).unwrap().xml, EventXml::TooLarge {});
        let quotes = event(&[], EventXml::from_bytes(vec![b'"'; MAX_XML]));
        assert_eq!(Event::parse(&quotes.encode().unwrap()).unwrap(), quotes);
        assert_eq!(EventXml::from_bytes(vec![b'x'; MAX_XML + 1]), EventXml::TooLarge {});
        assert!(Event::parse(&vec![b' '; MAX_FILE + 1]).unwrap_err().to_string().contains("bytes"));
    }

    #[test]
    fn other_versions_and_unknown_keys_are_refused() {
        let bytes = event(&[], EventXml::Absent {}).encode().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let newer = text.replace("\"version\":1", "\"version\":2,\"more\":0");
        assert_eq!(
            Event::parse(newer.as_bytes()).unwrap_err().to_string(),
            "it is of version 2; this virtfold knows 1"
        );
        let more = text.replace("\"version\":1", "\"version\":1,\"more\":0");
        assert!(Event::parse(more.as_bytes()).unwrap_err().to_string().contains("unknown field `more`"));
        assert!(Event::parse(&text.as_bytes()[..text.len() - 1]).is_err());
    }
}
