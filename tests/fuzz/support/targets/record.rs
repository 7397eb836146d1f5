//! The record of an archive that was broken off: whatever its files hold, reading ends where they are wrong.

use super::super::{flags, no_defect};
use uuid::Uuid;
use virtfold::archive::stream::ChunkLog;
use virtfold::backup::resume::{Fingerprint, read_chunks, read_marks};
use virtfold::crypt::{Envelope, ExposeSecret};

/// One input.
pub fn run(data: &[u8]) {
    let Some((flags, data)) = flags(data) else { return };
    match flags % 4 {
        0 => {
            if let Some(origin) = no_defect(Fingerprint::parse(data)) {
                let again = origin.encode().expect("what was read can be written");
                assert_eq!(Fingerprint::parse(&again).expect("what was written can be read"), origin);
            }
        }
        1 => {
            let (remains, right) = read_marks(data);
            let right = usize::try_from(right).expect("no more than there are");
            assert_eq!(read_marks(&data[..right]), (remains, right as u64), "what is wrong counts");
        }
        2 => {
            // A key that was kept: what can't be one is none.
            if let Some(envelope) = Envelope::parse(data) {
                assert_eq!(envelope.encode().expose_secret(), data);
            }
        }
        _ => {
            let (chunks, right) = read_chunks(Uuid::nil(), data).expect("memory can be read");
            assert!(right <= data.len() as u64 && right == chunks.len() * 44);
            assert!((0..chunks.len()).all(|number| chunks.get(number).is_ok()), "what is kept can be read");
        }
    }
}
