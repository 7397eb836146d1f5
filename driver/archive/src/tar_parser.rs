//! Finds the members in the stream of an archive, pushed with bytes as they arrive.
//!
//! The parser holds a header block and at most 1 MiB of pax records, never content: that is handed on as
//! slices of what was fed. It is strict. Header blocks must be byte for byte what virtfold writes, padding
//! must be zeros, nothing may follow the end. What may vary: names of members, and keywords of other vendors
//! in pax headers, which later versions may need.
//!
//! Imports: `units`, `error`; `tar`, `pax`, `layout`, `lines` of this room.

use crate::layout;
use crate::lines::damaged;
use crate::pax::{MAX_LEN, Records};
use crate::tar::{BLOCK, BLOCK_LEN, Block, Header, MAX_SIZE, NAME_LEN, SPARSE_PREFIX, Type, pax_name};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::StreamOffset;

/// A member, known by its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name, checked by [`layout::check_name`].
    pub name: String,
    /// Bytes of content in the stream; of a sparse member these are the padded map and the dense bytes.
    pub size: u64,
    /// The size of the file when unfolded, where the member is sparse.
    pub realsize: Option<u64>,
    /// Time of the backup, seconds since 1970.
    pub mtime: u64,
    /// Where the first byte of its headers stands.
    pub header_at: StreamOffset,
    /// Where the first byte of its content stands.
    pub content_at: StreamOffset,
}

/// What the parser finds, in this order: for each member its begin, its content in pieces, its end; then the
/// end of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'b> {
    /// A member begins.
    Begin(Member),
    /// Bytes of its content, never empty.
    Content(&'b [u8]),
    /// All of its content was there.
    End,
    /// The two blocks of zeros: nothing follows.
    EndOfArchive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In a header block.
    Block,
    /// In the second block of zeros.
    LastBlock,
    /// In pax records.
    Pax {
        left: u64,
    },
    Content {
        left: u64,
    },
    /// In the zeros behind pax records or content.
    Padding {
        left: u64,
    },
    Ended,
}

/// The parser.
#[derive(Debug)]
pub struct MemberParser {
    position: StreamOffset,
    state: State,
    /// A header block or pax records, as far as they came.
    held: Vec<u8>,
    /// Records of the next header, and their own header with its place.
    records: Option<(Records, Header, StreamOffset)>,
    /// The header of the records at hand.
    pax: Option<Header>,
    header_at: StreamOffset,
}

impl Default for MemberParser {
    fn default() -> Self {
        Self::at(StreamOffset::ZERO)
    }
}

impl MemberParser {
    /// From the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// From a place in the stream where a member's header begins.
    pub fn at(position: StreamOffset) -> Self {
        Self {
            position,
            state: State::Block,
            held: Vec::new(),
            records: None,
            pax: None,
            header_at: position,
        }
    }

    /// Where the next byte to be fed stands.
    pub fn position(&self) -> StreamOffset {
        self.position
    }

    /// Whether the end of the archive was met.
    pub fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Bytes of the current member's content that have not come yet; 0 outside of content.
    pub fn content_left(&self) -> u64 {
        if let State::Content { left } = self.state { left } else { 0 }
    }

    /// Passes over up to `len` bytes of the current member's content without seeing them, because they are
    /// damaged or not wanted; returns how many.
    pub fn skip_content(&mut self, len: u64) -> u64 {
        let skipped = self.content_left().min(len);
        if let State::Content { left } = self.state {
            self.state = State::Content { left: left - skipped };
            self.position = self.position.saturating_add(skipped);
        }
        skipped
    }

    /// The next event; `None` when all of `input` was used up. Advances `input` over what was used: call it
    /// until it returns `None`. After an error the parser is of no further use.
    ///
    /// # Errors
    /// Damaged.
    pub fn feed<'b>(&mut self, input: &mut &'b [u8]) -> Result<Option<Event<'b>>> {
        loop {
            let event = match self.state {
                State::Content { left: 0 } => {
                    // Padding is known from the position: members begin at multiples of a block.
                    self.state = State::Padding { left: self.to_next_block() };
                    Some(Event::End)
                }
                State::Padding { left: 0 } => {
                    self.begin_block();
                    None
                }
                _ if input.is_empty() => return Ok(None),
                State::Content { left } => {
                    let bytes = self.use_up(left, input);
                    self.state = State::Content { left: left - bytes.len() as u64 };
                    Some(Event::Content(bytes))
                }
                State::Padding { left } => {
                    self.padding(left, input)?;
                    None
                }
                State::Pax { left } => {
                    self.pax(left, input)?;
                    None
                }
                State::Block | State::LastBlock => self.block(input)?,
                State::Ended => {
                    return Err(self.bad("something follows the end"));
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// Must be called when the stream has ended.
    ///
    /// # Errors
    /// Incomplete: the archive's end was not there.
    pub fn finish(&self) -> Result<()> {
        if self.state == State::Ended {
            return Ok(());
        }
        let message =
            format!("the archive's stream ends after {} bytes, before its end record", self.position);
        Err(Error::new(ErrorKind::Incomplete, message))
    }

    fn bad(&self, what: impl std::fmt::Display) -> Error {
        damaged(self.position, what)
    }

    fn to_next_block(&self) -> u64 {
        // Headers begin where the parser began plus whole blocks; only multiples of a block are such places.
        let past = self.position.get() % BLOCK;
        (BLOCK - past) % BLOCK
    }

    fn begin_block(&mut self) {
        self.state = State::Block;
        self.held.clear();
        self.header_at = self.position;
    }

    fn use_up<'b>(&mut self, wanted: u64, input: &mut &'b [u8]) -> &'b [u8] {
        let len = usize::try_from(wanted).unwrap_or(usize::MAX).min(input.len());
        let (taken, rest) = input.split_at(len);
        *input = rest;
        self.position = self.position.saturating_add(len as u64);
        taken
    }

    fn padding(&mut self, left: u64, input: &mut &[u8]) -> Result<()> {
        let at = self.position;
        let zeros = self.use_up(left, input);
        if zeros.iter().any(|byte| *byte != 0) {
            return Err(damaged(at, "the padding of a member is not zeros"));
        }
        self.state = State::Padding { left: left - zeros.len() as u64 };
        Ok(())
    }

    fn pax(&mut self, left: u64, input: &mut &[u8]) -> Result<()> {
        let bytes = self.use_up(left, input);
        self.held.extend_from_slice(bytes);
        let left = left - bytes.len() as u64;
        self.state = State::Pax { left };
        if left == 0 {
            let records = Records::parse(&self.held).map_err(|why| damaged(self.header_at, why))?;
            self.records = self.pax.take().map(|header| (records, header, self.header_at));
            self.state = State::Padding { left: self.to_next_block() };
        }
        Ok(())
    }

    fn block(&mut self, input: &mut &[u8]) -> Result<Option<Event<'static>>> {
        let missing = BLOCK_LEN.saturating_sub(self.held.len()) as u64;
        let bytes = self.use_up(missing, input);
        self.held.extend_from_slice(bytes);
        let Ok(block) = Block::try_from(self.held.as_slice()) else { return Ok(None) };
        let bad = |why: &str| damaged(self.header_at, why);
        if block == [0; BLOCK_LEN] {
            if self.records.is_some() {
                return Err(bad("a pax header is followed by no member"));
            }
            let first = self.state == State::Block;
            self.begin_block();
            self.state = if first { State::LastBlock } else { State::Ended };
            return Ok((!first).then_some(Event::EndOfArchive));
        }
        if self.state == State::LastBlock {
            return Err(bad("a lone block of zeros stands between members"));
        }
        let header = Header::decode(&block).map_err(|why| bad(&why))?;
        match header.kind {
            Type::File => self.member(header).map(Some),
            Type::Pax if self.records.is_some() => Err(bad("a pax header is followed by no member")),
            Type::Pax if header.size == 0 || header.size > MAX_LEN => {
                Err(bad(&format!("a pax header has {} bytes", header.size)))
            }
            Type::Pax => {
                self.held.clear();
                self.state = State::Pax { left: header.size };
                self.pax = Some(header);
                Ok(None)
            }
        }
    }

    fn member(&mut self, header: Header) -> Result<Event<'static>> {
        let block_at = self.header_at;
        let (records, header_at) = match self.records.take() {
            None => (Records::default(), block_at),
            Some((_, pax, _)) if pax.mtime != header.mtime || pax.name != pax_name(&header.name) => {
                return Err(damaged(block_at, "a pax header has another name or time than its member"));
            }
            Some((records, _, at)) => (records, at),
        };
        let described = describe(header, records).and_then(|member| match member.size {
            size if size > MAX_SIZE || self.position.checked_add(size).is_none() => {
                Err(format!("member '{}' has {size} bytes", member.name))
            }
            _ => Ok(member),
        });
        let mut member = described.map_err(|why| damaged(block_at, why))?;
        member.header_at = header_at;
        member.content_at = self.position;
        self.state = State::Content { left: member.size };
        Ok(Event::Begin(member))
    }
}

/// Joins a header and its records; places are left for the caller.
fn describe(header: Header, records: Records) -> std::result::Result<Member, String> {
    let size = match records.size {
        None => header.size,
        Some(size) if header.size == 0 => size,
        Some(_) => return Err("a pax header and a tar header contradict each other in the size".to_owned()),
    };
    let name = match (&records.sparse, records.path) {
        (None, None) => header.name,
        (None, Some(path)) if path.get(..NAME_LEN.min(path.len())) == Some(&header.name) => path,
        (Some(sparse), None) if header.name.strip_prefix(SPARSE_PREFIX) == Some(&sparse.name) => {
            sparse.name.clone()
        }
        _ => return Err("a pax header and a tar header contradict each other in the name".to_owned()),
    };
    layout::check_name(&name)?;
    let realsize = records.sparse.map(|sparse| sparse.realsize);
    if let Some(realsize) = realsize.filter(|realsize| *realsize > MAX_SIZE) {
        return Err(format!("member '{name}' has {realsize} bytes when unfolded"));
    }
    let mtime = header.mtime;
    let (header_at, content_at) = (StreamOffset::ZERO, StreamOffset::ZERO);
    Ok(Member { name, size, realsize, mtime, header_at, content_at })
}
