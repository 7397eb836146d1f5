//! The head and the end record: whatever parses is written again as it was read.

use super::super::{flags, no_defect};
use virtfold::archive::end_record::EndRecord;
use virtfold::archive::manifest::Manifest;
use virtfold::units::StreamOffset;

/// One input.
pub fn run(data: &[u8]) {
    let Some((flags, data)) = flags(data) else { return };
    if flags & 1 == 0 {
        if let Some(head) = no_defect(Manifest::parse(data)) {
            let again = head.encode().expect("what was read can be written");
            assert_eq!(Manifest::parse(&again).expect("what was written can be read"), head);
            head.time().expect("a head has a time");
        }
    } else if let Some((record, root)) = no_defect(EndRecord::parse(data, StreamOffset::ZERO)) {
        assert_eq!(record.encode(&root), data, "there is one spelling");
    }
}
