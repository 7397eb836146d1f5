//! An archive that comes front to back, encrypted or not.

use std::io::{self, Chain, Cursor, Read};
use std::sync::Arc;

use age::stream::StreamReader;

use super::Identities;
use super::unlock::{Gate, GateState, Kind, PROBE, Unlocked, broken, end_unproven, kind_of, unlock};
use crate::error::{IoContext, Result};

/// The first bytes, which were looked at, and the rest.
type Whole<R> = Chain<Cursor<Vec<u8>>, R>;

/// What an archive holds, as it comes; its errors are [`io::Error`]s whose cause is the library's, where it is about encryption.
pub struct Incoming<R>(Form<R>);

enum Form<R> {
    Bare(Whole<R>),
    Encrypted(Box<Opened<R>>),
}

struct Opened<R> {
    stream: StreamReader<io::BufReader<Gate<Whole<R>>>>,
    state: Arc<GateState>,
    name: String,
    /// Plain bytes given out.
    at: u64,
}

impl<R: Read> Incoming<R> {
    /// Looks at the first bytes of `input`, called `name` in messages, and opens it with `identities` where it is encrypted.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`](crate::error::ErrorKind::Locked), where no identity opens it; Damaged, Incomplete, Unsupported, where its beginning is; those of `input`.
    pub fn open(mut input: R, name: &str, identities: &Identities) -> Result<Self> {
        let mut first = Vec::with_capacity(PROBE);
        input.by_ref().take(PROBE as u64).read_to_end(&mut first).at(|| format!("cannot read '{name}'"))?;
        let kind = kind_of(&first, name)?;
        let whole = Cursor::new(first).chain(input);
        Ok(Self(match kind {
            Kind::Bare => Form::Bare(whole),
            Kind::Encrypted => {
                let Unlocked { stream, state } = unlock(whole, name, identities)?;
                Form::Encrypted(Box::new(Opened { stream, state, name: name.to_owned(), at: 0 }))
            }
        }))
    }

    /// Whether it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.0, Form::Encrypted(_))
    }
}

impl<R: Read> Read for Incoming<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let opened = match &mut self.0 {
            Form::Bare(whole) => return whole.read(buf),
            Form::Encrypted(opened) => opened,
        };
        match opened.stream.read(buf) {
            Ok(got) => {
                opened.at += got as u64;
                Ok(got)
            }
            // A piece that fails and has the end of the input behind it may be whole but for its end.
            Err(error) if error.kind() == io::ErrorKind::InvalidData && opened.state.has_ended() => {
                Err(io::Error::other(end_unproven(&opened.name)))
            }
            Err(error)
                if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                Err(io::Error::other(broken(&opened.name, opened.at, error)))
            }
            // What the input itself says goes through as it is.
            Err(error) => Err(error),
        }
    }
}
