//! virtio-scsi over the logical unit (virtio 1.2, 5.6): request headers in, response headers out. One target,
//! one unit.

use std::sync::{Arc, Mutex};

use super::ssc::Unit;
use super::vhost::Device;

/// The queue of task management; 1 is that of events, which never come.
const CONTROL: usize = 0;
const REQUESTS: usize = 2;
/// Sizes that the configuration tells the driver.
const SENSE: usize = 96;
const CDB: usize = 32;
const HEAD: usize = 19;
const RESPONSE: usize = 12 + SENSE;
const BAD_TARGET: u8 = 3;

/// The target.
pub(super) struct Target {
    unit: Arc<Mutex<Unit>>,
}

impl Target {
    pub(super) fn new(unit: Arc<Mutex<Unit>>) -> Self {
        Self { unit }
    }
}

impl Device for Target {
    fn queues(&self) -> usize {
        REQUESTS + 1
    }

    fn config(&self) -> Vec<u8> {
        // num_queues, seg_max, max_sectors, cmd_per_lun, event_info_size, sense_size, cdb_size.
        let numbers = [1_u32, 4096, 0xffff, 16, 16, 96, 32];
        let mut config: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        // max_channel, max_target, max_lun.
        config.extend([0; 8]);
        config
    }

    fn request(&mut self, queue: usize, out: &[u8], room: usize) -> Vec<u8> {
        if queue == CONTROL {
            return vec![0; room];
        }
        let mut response = vec![0; RESPONSE];
        let (lun, cdb) = (&out[..8], &out[HEAD..HEAD + CDB]);
        if lun[..2] != [1, 0] || lun[2] & 0x3f != 0 || lun[3] != 0 {
            response[11] = BAD_TARGET;
            return response;
        }
        let room = room.saturating_sub(RESPONSE);
        let mut answer = self.unit.lock().unwrap().execute(cdb, &out[HEAD + CDB..], room);
        answer.data.truncate(room);
        let residual = u32::try_from(room - answer.data.len()).unwrap();
        response[4..8].copy_from_slice(&residual.to_le_bytes());
        if let Some(sense) = answer.sense {
            let bytes = sense.bytes();
            response[0] = u8::try_from(bytes.len()).unwrap();
            response[10] = 2;
            response[12..12 + bytes.len()].copy_from_slice(&bytes);
        }
        response.extend(answer.data);
        response
    }
}
