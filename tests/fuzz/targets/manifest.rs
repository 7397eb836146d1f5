//! The head of an archive as anybody may have written it: what is accepted says the same when written again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use virtfold::archive::end::EndRecord;
use virtfold::archive::manifest::Manifest;
use virtfold::units::StreamOffset;

fuzz_target!(|data: &[u8]| {
    if let Ok(manifest) = Manifest::parse(data) {
        let again = manifest.encode().expect("what was read can be written");
        assert_eq!(Manifest::parse(&again).expect("what was written can be read"), manifest);
    }
    if let Ok((record, root)) = EndRecord::parse(data, StreamOffset::ZERO) {
        assert_eq!(record.encode(&root), data, "another spelling of the end record was accepted");
    }
});
