//! The logical unit: a sequential-access device (SSC-4) with variable blocks, a buffer, an early warning, and
//! faults.
//!
//! What is on a cartridge is a row of logical objects, blocks and filemarks, numbered from 0: READ POSITION
//! tells the number of the next one. A write makes everything behind it disappear, as on a tape.

use super::sense::{Answer, END_OF_MEDIUM, FILEMARK, Sense, WRONG_LENGTH, key};

/// A logical object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    Block(Vec<u8>),
    Mark,
}

/// A cartridge.
#[derive(Clone, Debug)]
pub(crate) struct Cartridge {
    /// What is on it.
    pub(crate) objects: Vec<Object>,
    /// Bytes of blocks that fit.
    pub(crate) capacity: u64,
    /// Bytes before the end at which the drive begins to warn.
    pub(crate) warning: u64,
    /// The write-protect tab.
    pub(crate) protected: bool,
}

impl Cartridge {
    /// An empty one.
    pub(crate) fn new(capacity: u64, warning: u64) -> Self {
        Self { objects: Vec::new(), capacity, warning, protected: false }
    }
}

/// What goes wrong, once, when the object of that number is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Its write fails with a medium error; nothing is written.
    WriteError(u64),
    /// Its write succeeds, and nothing is written.
    SilentDrop(u64),
    /// Blocks that were accepted are lost with it, as many as `lost`; the drive says so, deferred, at the
    /// next command.
    Deferred { at: u64, lost: u64 },
    /// The drive resets when it is written: it is rewound, and says so.
    Reset(u64),
    /// It is written, and the drive says that the tape is full.
    Full(u64),
    /// One bit of it is wrong on the tape.
    Corrupt(u64),
    /// It can't be read.
    ReadError(u64),
}

/// The drive.
pub(crate) struct Unit {
    /// Cartridges that are not in the drive.
    pub(crate) shelf: Vec<Option<Cartridge>>,
    /// The one in the drive, and its place on the shelf.
    loaded: Option<(usize, Cartridge)>,
    /// Faults to come.
    pub(crate) faults: Vec<Fault>,
    /// Writes of blocks so far.
    pub(crate) writes: u64,
    /// Drive compression.
    pub(crate) compression: bool,
    position: usize,
    used: u64,
    block_length: u32,
    buffered: u8,
    attentions: Vec<u16>,
    pending: Option<Sense>,
    locked: bool,
}

const LARGEST_BLOCK: u32 = 8 << 20;
const RESET: u16 = 0x2900;
const MEDIUM_CHANGED: u16 = 0x2800;
const END_OF_DATA: u16 = 0x0005;

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

fn position(at: u64) -> usize {
    usize::try_from(at).unwrap()
}

impl Unit {
    pub(super) fn new(shelf: Vec<Cartridge>) -> Self {
        Self {
            shelf: shelf.into_iter().map(Some).collect(),
            loaded: None,
            faults: Vec::new(),
            writes: 0,
            compression: true,
            position: 0,
            used: 0,
            block_length: 0,
            buffered: 1,
            attentions: vec![RESET],
            pending: None,
            locked: false,
        }
    }

    /// As when the drive is switched on, or reset.
    pub(crate) fn power_on(&mut self) {
        self.seek(0);
        self.block_length = 0;
        self.compression = true;
        self.locked = false;
        self.pending = None;
        self.attentions = vec![RESET];
    }

    /// Puts the cartridge of a slot into the drive; what was in it goes back to its place.
    pub(crate) fn insert(&mut self, slot: usize) {
        self.eject();
        let cartridge = self.shelf[slot].take().expect("the slot is empty");
        self.loaded = Some((slot, cartridge));
        self.seek(0);
        self.attentions.push(MEDIUM_CHANGED);
    }

    /// Takes the cartridge out.
    pub(crate) fn eject(&mut self) {
        if let Some((slot, cartridge)) = self.loaded.take() {
            self.shelf[slot] = Some(cartridge);
        }
        self.position = 0;
    }

    /// Whether no cartridge is in the drive.
    pub(crate) fn is_empty(&self) -> bool {
        self.loaded.is_none()
    }

    /// The cartridge of a slot, wherever it is.
    pub(crate) fn cartridge(&mut self, slot: usize) -> &mut Cartridge {
        match &mut self.loaded {
            Some((place, cartridge)) if *place == slot => cartridge,
            _ => self.shelf[slot].as_mut().unwrap(),
        }
    }

    fn seek(&mut self, to: usize) {
        self.position = to;
        let size = |object: &Object| if let Object::Block(bytes) = object { bytes.len() as u64 } else { 0 };
        let before = self.loaded.as_ref().map(|(_, tape)| tape.objects[..to].iter().map(size).sum());
        self.used = before.unwrap_or(0);
    }

    /// Takes a fault out that is due at the present position.
    fn due(&mut self, fits: impl Fn(Fault, u64) -> bool) -> Option<Fault> {
        let here = self.position as u64;
        let place = self.faults.iter().position(|fault| fits(*fault, here))?;
        Some(self.faults.swap_remove(place))
    }

    /// Executes a command.
    pub(super) fn execute(&mut self, cdb: &[u8], out: &[u8], room: usize) -> Answer {
        let code = cdb[0];
        let says_always = matches!(code, 0x03 | 0x12 | 0xa0);
        if !says_always && !self.attentions.is_empty() {
            return Sense::new(key::UNIT_ATTENTION, self.attentions.remove(0)).into();
        }
        if !says_always && let Some(sense) = self.pending.take() {
            return sense.into();
        }
        match code {
            0x03 => Answer::data(Sense::new(key::NO_SENSE, 0).bytes().to_vec()),
            0x05 => {
                let largest = LARGEST_BLOCK.to_be_bytes();
                Answer::data(vec![0, largest[1], largest[2], largest[3], 0, 1])
            }
            0x12 => inquiry(cdb),
            0x15 => self.mode_select(out),
            0x1a => self.mode_sense(cdb),
            0x1b if cdb[4] & 1 == 0 && self.locked => Sense::new(key::ILLEGAL_REQUEST, 0x5302).into(),
            0x1b if cdb[4] & 1 == 0 => {
                self.eject();
                Answer::good()
            }
            0x1e => {
                self.locked = cdb[4] & 1 != 0;
                Answer::good()
            }
            0xa0 => Answer::data(vec![0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            _ if self.loaded.is_none() => Sense::new(key::NOT_READY, 0x3a00).into(),
            _ => self.with_tape(cdb, out, room),
        }
    }

    /// Commands that need a cartridge.
    fn with_tape(&mut self, cdb: &[u8], out: &[u8], room: usize) -> Answer {
        match cdb[0] {
            0x00 => Answer::good(),
            0x01 | 0x1b => {
                self.seek(0);
                Answer::good()
            }
            0x08 => self.read(cdb, room),
            0x0a => self.write(cdb, out),
            0x10 => self.write_marks(number(&cdb[2..5])),
            0x11 => {
                let count = i64::from(number(&cdb[2..5]) << 8).wrapping_shl(32) >> 40;
                self.space(cdb[1] & 0xf, count)
            }
            0x19 => self.erase(),
            0x2b => self.locate(number(&cdb[3..7])),
            0x34 if cdb[1] & 0x1f <= 1 => self.read_position(),
            _ => Sense::new(key::ILLEGAL_REQUEST, 0x2000).into(),
        }
    }

    fn tape(&mut self) -> &mut Cartridge {
        &mut self.loaded.as_mut().unwrap().1
    }

    fn protected(&self) -> bool {
        self.loaded.as_ref().is_some_and(|(_, tape)| tape.protected)
    }

    /// Whether the end is near.
    fn warned(&self) -> bool {
        self.loaded.as_ref().is_some_and(|(_, tape)| self.used + tape.warning > tape.capacity)
    }

    fn put(&mut self, object: Object) {
        let here = self.position;
        if let Object::Block(bytes) = &object {
            self.used += bytes.len() as u64;
        }
        let tape = self.tape();
        tape.objects.truncate(here);
        tape.objects.push(object);
        self.position += 1;
    }

    fn write(&mut self, cdb: &[u8], out: &[u8]) -> Answer {
        if self.protected() {
            return Sense::new(key::DATA_PROTECT, 0x2700).into();
        }
        if cdb[1] & 1 != 0 || out.len() != number(&cdb[2..5]) as usize {
            return Sense::new(key::ILLEGAL_REQUEST, 0x2400).into();
        }
        if out.is_empty() {
            return Answer::good();
        }
        self.writes += 1;
        let length = i64::try_from(out.len()).unwrap();
        match self.due(|fault, here| match fault {
            Fault::WriteError(at)
            | Fault::SilentDrop(at)
            | Fault::Reset(at)
            | Fault::Full(at)
            | Fault::Deferred { at, .. } => at == here,
            _ => false,
        }) {
            Some(Fault::WriteError(_)) => {
                return Sense::new(key::MEDIUM_ERROR, 0x0c00).information(length).into();
            }
            Some(Fault::SilentDrop(_)) => return Answer::good(),
            Some(Fault::Deferred { lost, .. }) => {
                let to = self.position.saturating_sub(position(lost));
                self.tape().objects.truncate(to);
                self.seek(to);
                self.pending = Some(Sense::new(key::MEDIUM_ERROR, 0x0c00).deferred());
                return Answer::good();
            }
            Some(Fault::Full(_)) => {
                self.put(Object::Block(out.to_vec()));
                return Sense::new(key::VOLUME_OVERFLOW, 0x0002).bits(END_OF_MEDIUM).into();
            }
            Some(Fault::Reset(_)) => {
                self.power_on();
                return Sense::new(key::UNIT_ATTENTION, self.attentions.remove(0)).into();
            }
            _ => {}
        }
        let capacity = self.tape().capacity;
        if self.used + out.len() as u64 > capacity {
            return Sense::new(key::VOLUME_OVERFLOW, 0x0002).bits(END_OF_MEDIUM).information(length).into();
        }
        self.put(Object::Block(out.to_vec()));
        self.warning()
    }

    /// GOOD, or the early warning: what was asked for is done either way.
    fn warning(&self) -> Answer {
        match self.warned() {
            true => Sense::new(key::NO_SENSE, 0x0002).bits(END_OF_MEDIUM).information(0).into(),
            false => Answer::good(),
        }
    }

    fn write_marks(&mut self, count: u32) -> Answer {
        if self.protected() {
            return Sense::new(key::DATA_PROTECT, 0x2700).into();
        }
        (0..count).for_each(|_| self.put(Object::Mark));
        self.warning()
    }

    fn erase(&mut self) -> Answer {
        if self.protected() {
            return Sense::new(key::DATA_PROTECT, 0x2700).into();
        }
        let here = self.position;
        self.tape().objects.truncate(here);
        Answer::good()
    }

    fn read(&mut self, cdb: &[u8], room: usize) -> Answer {
        let wanted = number(&cdb[2..5]) as usize;
        if cdb[1] & 1 != 0 {
            return Sense::new(key::ILLEGAL_REQUEST, 0x2400).into();
        }
        if wanted == 0 {
            return Answer::good();
        }
        let asked = i64::try_from(wanted).unwrap();
        if self.due(|fault, here| fault == Fault::ReadError(here)).is_some() {
            return Sense::new(key::MEDIUM_ERROR, 0x1100).information(asked).into();
        }
        let here = self.position;
        let mut bytes = match self.tape().objects.get(here) {
            None => return Sense::new(key::BLANK_CHECK, END_OF_DATA).information(asked).into(),
            Some(Object::Mark) => {
                self.position += 1;
                return Sense::new(key::NO_SENSE, 0x0001).bits(FILEMARK).information(asked).into();
            }
            Some(Object::Block(bytes)) => bytes.clone(),
        };
        if self.due(|fault, here| fault == Fault::Corrupt(here)).is_some() {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
        }
        self.used += bytes.len() as u64;
        self.position += 1;
        let length = bytes.len();
        bytes.truncate(wanted.min(room));
        let quiet = cdb[1] & 2 != 0 && length < wanted;
        let sense = (length != wanted && !quiet).then(|| {
            let over = asked - i64::try_from(length).unwrap();
            Sense::new(key::NO_SENSE, 0).bits(WRONG_LENGTH).information(over)
        });
        Answer { data: bytes, sense }
    }

    fn space(&mut self, what: u8, count: i64) -> Answer {
        let end = self.tape().objects.len();
        if what == 3 {
            self.seek(end);
            return Answer::good();
        }
        let marks = what == 1;
        let (mut at, mut left) = (self.position, count.unsigned_abs());
        while left > 0 {
            let forward = count > 0;
            let next = if forward { Some(at).filter(|at| *at < end) } else { at.checked_sub(1) };
            let Some(object) = next else {
                self.seek(at);
                let left = i64::try_from(left).unwrap();
                return match forward {
                    true => Sense::new(key::BLANK_CHECK, END_OF_DATA).information(left).into(),
                    false => Sense::new(key::NO_SENSE, 0x0004).bits(END_OF_MEDIUM).information(left).into(),
                };
            };
            let is_mark = self.tape().objects[object] == Object::Mark;
            at = if forward { at + 1 } else { object };
            if is_mark && !marks {
                self.seek(at);
                let left = i64::try_from(left).unwrap();
                return Sense::new(key::NO_SENSE, 0x0001).bits(FILEMARK).information(left).into();
            }
            if is_mark == marks {
                left -= 1;
            }
        }
        self.seek(at);
        Answer::good()
    }

    fn locate(&mut self, to: u32) -> Answer {
        let end = self.tape().objects.len();
        let to = to as usize;
        self.seek(to.min(end));
        match to > end {
            true => Sense::new(key::BLANK_CHECK, END_OF_DATA).into(),
            false => Answer::good(),
        }
    }

    fn read_position(&self) -> Answer {
        let mut data = vec![0; 20];
        data[0] = if self.position == 0 { 0x80 } else { 0 } | if self.warned() { 0x40 } else { 0 };
        let here = u32::try_from(self.position).unwrap().to_be_bytes();
        data[4..8].copy_from_slice(&here);
        data[8..12].copy_from_slice(&here);
        Answer::data(data)
    }

    fn mode_sense(&self, cdb: &[u8]) -> Answer {
        let no_descriptor = cdb[1] & 8 != 0;
        let changeable = cdb[2] >> 6 == 1;
        let protected = if self.protected() { 0x80 } else { 0 };
        let mut data = vec![0, 0, protected | self.buffered << 4, if no_descriptor { 0 } else { 8 }];
        if !no_descriptor {
            let length = self.block_length.to_be_bytes();
            data.extend([0x5a, 0, 0, 0, 0, length[1], length[2], length[3]]);
        }
        match cdb[2] & 0x3f {
            0 => {}
            // Data compression: capable (0x40), enabled (0x80).
            0x0f | 0x3f => {
                let enabled = if self.compression || changeable { 0x80 } else { 0 };
                data.extend([0x0f, 14, 0x40 | enabled, 0x80, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]);
            }
            _ => return Sense::new(key::ILLEGAL_REQUEST, 0x2400).into(),
        }
        data[0] = u8::try_from(data.len() - 1).unwrap();
        data.truncate(usize::from(cdb[4]));
        Answer::data(data)
    }

    fn mode_select(&mut self, out: &[u8]) -> Answer {
        let bad = || Answer::from(Sense::new(key::ILLEGAL_REQUEST, 0x2600));
        let Some((head, rest)) = out.split_at_checked(4) else { return bad() };
        let Some((descriptor, mut pages)) = rest.split_at_checked(usize::from(head[3])) else { return bad() };
        self.buffered = head[2] >> 4 & 7;
        if descriptor.len() >= 8 {
            let length = number(&descriptor[5..8]);
            if length > LARGEST_BLOCK {
                return bad();
            }
            self.block_length = length;
        }
        while let [code, length, page @ ..] = pages {
            let Some((page, rest)) = page.split_at_checked(usize::from(*length)) else { return bad() };
            if code & 0x3f == 0x0f && !page.is_empty() {
                self.compression = page[0] & 0x80 != 0;
            }
            pages = rest;
        }
        Answer::good()
    }
}

fn inquiry(cdb: &[u8]) -> Answer {
    let page = |code: u8, body: &[u8]| {
        let mut data = vec![1, code, 0, u8::try_from(body.len()).unwrap()];
        data.extend_from_slice(body);
        data
    };
    let mut data = match (cdb[1] & 1, cdb[2]) {
        // A removable sequential-access device of SPC-4, fixed-format sense, tagged commands.
        (0, _) => {
            let mut data = vec![1, 0x80, 6, 2, 31, 0, 0, 2];
            data.extend_from_slice(b"TEST    TAPE IN MEMORY  0001");
            data
        }
        (_, 0) => page(0, &[0, 0x80]),
        (_, 0x80) => page(0x80, b"T0000001"),
        _ => return Sense::new(key::ILLEGAL_REQUEST, 0x2400).into(),
    };
    data.truncate(usize::from(u16::from_be_bytes([cdb[3], cdb[4]])));
    Answer::data(data)
}
