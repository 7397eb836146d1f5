//! Sense data in the fixed format (SPC-4, 4.5.3), and what a command comes to.

/// Sense keys.
pub(super) mod key {
    pub(in super::super) const NO_SENSE: u8 = 0x0;
    pub(in super::super) const NOT_READY: u8 = 0x2;
    pub(in super::super) const MEDIUM_ERROR: u8 = 0x3;
    pub(in super::super) const ILLEGAL_REQUEST: u8 = 0x5;
    pub(in super::super) const UNIT_ATTENTION: u8 = 0x6;
    pub(in super::super) const DATA_PROTECT: u8 = 0x7;
    pub(in super::super) const BLANK_CHECK: u8 = 0x8;
    pub(in super::super) const VOLUME_OVERFLOW: u8 = 0xd;
}

/// Bits beside the sense key.
pub(super) const FILEMARK: u8 = 0x80;
pub(super) const END_OF_MEDIUM: u8 = 0x40;
pub(super) const WRONG_LENGTH: u8 = 0x20;

/// Why a command did not end with GOOD.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sense {
    key: u8,
    bits: u8,
    code: u16,
    information: Option<i64>,
    deferred: bool,
}

impl Sense {
    /// A key and an additional sense code with its qualifier, `0xASCQ`.
    pub(super) fn new(key: u8, code: u16) -> Self {
        Self { key, bits: 0, code, information: None, deferred: false }
    }

    pub(super) fn bits(mut self, bits: u8) -> Self {
        self.bits = bits;
        self
    }

    pub(super) fn information(mut self, information: i64) -> Self {
        self.information = Some(information);
        self
    }

    pub(super) fn deferred(mut self) -> Self {
        self.deferred = true;
        self
    }

    /// The 18 bytes.
    pub(super) fn bytes(&self) -> [u8; 18] {
        let mut bytes = [0; 18];
        bytes[0] = if self.deferred { 0x71 } else { 0x70 };
        if let Some(information) = self.information {
            bytes[0] |= 0x80;
            bytes[3..7].copy_from_slice(&information.to_be_bytes()[4..]);
        }
        bytes[2] = self.key | self.bits;
        bytes[7] = 10;
        bytes[12..14].copy_from_slice(&self.code.to_be_bytes());
        bytes
    }
}

/// What a command comes to: data for the host, and sense where it is CHECK CONDITION.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) data: Vec<u8>,
    pub(super) sense: Option<Sense>,
}

impl Answer {
    pub(super) fn good() -> Self {
        Self::default()
    }

    pub(super) fn data(data: Vec<u8>) -> Self {
        Self { data, sense: None }
    }
}

impl From<Sense> for Answer {
    fn from(sense: Sense) -> Self {
        Self { data: Vec::new(), sense: Some(sense) }
    }
}
