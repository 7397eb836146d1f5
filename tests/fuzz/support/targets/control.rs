//! The control protocol: whatever parses as a request is written again as one that says the same; answers of
//! a service are read without a panic.

use super::super::{flags, no_defect};
use virtfold::service::control::{Request, Response, VERSION};

/// One input.
pub fn run(data: &[u8]) {
    let Some((flags, data)) = flags(data) else { return };
    if flags & 1 == 0 {
        if let Some(ask) = no_defect(Request::parse(data)) {
            let again = serde_json::to_vec(&Request { version: VERSION, ask: ask.clone() })
                .expect("a request can be written");
            assert_eq!(Request::parse(&again).expect("what was written can be read"), ask);
        }
    } else if let Ok(reply) = Response::parse(data) {
        let again = serde_json::to_vec(&Response::new(Ok(reply.clone()))).expect("an answer can be written");
        let read = Response::parse(&again).expect("what was written can be read");
        // Not the reply itself: a float that is no number can't be compared.
        assert_eq!(serde_json::to_vec(&read).expect("read"), serde_json::to_vec(&reply).expect("reply"));
    }
}
