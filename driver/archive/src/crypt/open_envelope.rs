//! Opening: is it an age file, whose is it, and what is said when it does not open.

use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use age::stream::StreamReader;
use age::{DecryptError, Decryptor};

use super::{Identities, is_encrypted_name};
use virtfold_base::error::{Error, ErrorKind, Result};

/// What every age file begins with; the version follows.
const MAGIC: &[u8] = b"age-encryption.org/";
/// The version that is read.
const VERSION: &[u8] = b"v1\n";
/// What an age file in letters begins with.
const ARMOR: &[u8] = b"-----BEGIN AGE ENCRYPTED FILE-----";
/// First bytes that tell.
pub(super) const PROBE: usize = 34;
/// The longest header that is read, bytes. The parser begins anew with each line, so this bounds its time,
/// too.
pub(super) const MAX_HEADER: usize = 64 << 10;

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    /// No age file.
    Plain,
    /// An age file.
    Encrypted,
}

/// What an archive called `name` that begins with `first`, at most [`PROBE`] bytes, is.
///
/// # Errors
/// Unsupported, where it is armored or of another version; Incomplete, where all of it is the
/// beginning of an age file; Damaged, where its name says that it is encrypted, and it is not.
pub(super) fn kind_of(first: &[u8], name: &str) -> Result<FileKind> {
    if first.starts_with(MAGIC) {
        return match first.get(MAGIC.len()..MAGIC.len() + VERSION.len()) {
            Some(VERSION) => Ok(FileKind::Encrypted),
            Some(_) => {
                let what = format!("'{name}' has an age version that virtfold does not know");
                Err(Error::new(ErrorKind::Unsupported, what))
            }
            None => Err(within_header(name)),
        };
    }
    if first.starts_with(ARMOR) {
        let what = format!("'{name}' is an armored age file; virtfold reads the binary form");
        return Err(Error::new(ErrorKind::Unsupported, what)
            .with_hint("'age -d -i KEYFILE' decrypts it; virtfold reads what that gives"));
    }
    if is_encrypted_name(name) || !first.is_empty() && MAGIC.starts_with(first) {
        if MAGIC.starts_with(first) {
            return Err(within_header(name));
        }
        let what =
            format!("'{name}' is named as an encrypted archive and does not begin as an age file does");
        return Err(Error::new(ErrorKind::Damaged, what));
    }
    Ok(FileKind::Plain)
}

fn within_header(name: &str) -> Error {
    Error::new(ErrorKind::Incomplete, format!("'{name}' is incomplete: it ends within its age header"))
}

/// What is read of an age file: while its header is read, no more than a header may have.
#[derive(Debug)]
pub(super) struct HeaderReader<R> {
    inner: R,
    state: Arc<HeaderReaderState>,
}

impl<R> HeaderReader<R> {
    pub(super) fn new(inner: R) -> (Self, Arc<HeaderReaderState>) {
        let state = Arc::new(HeaderReaderState::default());
        (Self { inner, state: Arc::clone(&state) }, state)
    }
}

/// What a [`HeaderReader`] shares with whoever made it, for the `age` crate keeps the gate itself.
#[derive(Debug, Default)]
pub(super) struct HeaderReaderState {
    open: AtomicBool,
    /// Bytes read through it.
    read: AtomicU64,
}

impl HeaderReaderState {
    /// Bytes that were read.
    pub(super) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

impl<R: Read> Read for HeaderReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut room = buf.len();
        if !self.state.open.load(Ordering::Relaxed) {
            let left = (MAX_HEADER as u64).saturating_sub(self.state.read.load(Ordering::Relaxed));
            room = room.min(usize::try_from(left).unwrap_or(usize::MAX));
            if room == 0 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than 64 KiB"));
            }
        }
        let got = self.inner.read(buf.get_mut(..room).unwrap_or_default())?;
        self.state.read.fetch_add(got as u64, Ordering::Relaxed);
        Ok(got)
    }
}

impl<R: Seek> Seek for HeaderReader<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

/// Reads the header of the age file `input`, called `name`, and opens it.
///
/// # Errors
/// [`ErrorKind::Locked`], where no identity opens it; Damaged, Incomplete, where its header is;
/// Unsupported, where it is encrypted with a passphrase or of a later version; those of `input`.
pub(super) fn unlock<R: Read>(
    input: R,
    name: &str,
    identities: &Identities,
) -> Result<StreamReader<BufReader<HeaderReader<R>>>> {
    let (gate, state) = HeaderReader::new(input);
    let decryptor = Decryptor::new_buffered(BufReader::new(gate)).map_err(|e| explain(e, name))?;
    state.open.store(true, Ordering::Relaxed);
    refuse(&decryptor, name, identities)?;
    decryptor.decrypt(identities.iter()).map_err(|e| explain(e, name))
}

/// Refuses what is not opened here, whatever the identities are, and what none was given for.
///
/// # Errors
/// Unsupported, where it is encrypted with a passphrase; [`ErrorKind::Locked`], where there is no identity.
pub(super) fn refuse<R>(decryptor: &Decryptor<R>, name: &str, identities: &Identities) -> Result<()> {
    if decryptor.is_scrypt() {
        let what = format!("'{name}' is encrypted with a passphrase, which virtfold does not support");
        return Err(Error::new(ErrorKind::Unsupported, what)
            .with_hint("'age -d' decrypts it; virtfold reads what that gives"));
    }
    if identities.is_empty() {
        let what = format!("'{name}' is encrypted; no identity was given");
        return Err(Error::new(ErrorKind::Locked, what).with_hint("--identity FILE names the key file"));
    }
    Ok(())
}

/// Bytes before the first piece of the age file `input`, called `name`.
///
/// # Errors
/// As [`unlock`], as far as the header is concerned.
pub(super) fn header_len<R: Read>(input: R, name: &str) -> Result<u64> {
    let (gate, state) = HeaderReader::new(input);
    // The unbuffered parser reads not one byte too many.
    Decryptor::new(gate).map_err(|e| explain(e, name))?;
    Ok(state.read())
}

/// What is said when an age file called `name` does not open.
pub(super) fn explain(error: DecryptError, name: &str) -> Error {
    let damaged =
        |why: &str| Error::new(ErrorKind::Damaged, format!("'{name}' is damaged: its age header {why}"));
    match error {
        DecryptError::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => within_header(name),
        DecryptError::Io(e) if e.kind() == io::ErrorKind::InvalidData => damaged("is none: it has no end"),
        DecryptError::Io(e) => Error::io(format!("cannot read '{name}'"), e),
        // The version was seen before: what is unknown here is none.
        DecryptError::InvalidHeader | DecryptError::UnknownFormat => damaged("makes no sense"),
        DecryptError::InvalidMac => damaged("is not what was written"),
        _ => {
            let what = format!("none of the given identities opens '{name}'");
            Error::new(ErrorKind::Locked, what)
                .with_hint("it was encrypted to others, or the keys in its header are damaged")
        }
    }
}

/// What is said when `error` is met at byte `at` of the archive in the age file called `name`.
pub(super) fn broken(name: &str, at: u64, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            let what = format!("'{name}' is incomplete: the encrypted archive breaks off at byte {at}");
            Error::new(ErrorKind::Incomplete, what)
        }
        io::ErrorKind::InvalidData => {
            let what = format!(
                "'{name}' is damaged: the encrypted data at byte {at} of its archive are not what was written"
            );
            Error::new(ErrorKind::Damaged, what)
        }
        _ => Error::io(format!("cannot read '{name}'"), error),
    }
}

/// What is said of an age file called `name` whose last piece is not proven to be the last.
pub(super) fn end_unproven(name: &str) -> Error {
    let what = format!(
        "'{name}' is incomplete: its last piece is not marked as the end; it is truncated, its end is damaged, or something follows it"
    );
    Error::new(ErrorKind::Incomplete, what)
}
