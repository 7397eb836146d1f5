//! The back end of vhost-user: one connection, split rings with indirect descriptors.
//!
//! The machine's memory is a file whose descriptor it sends. It is read and written with pread(2) and
//! pwrite(2), which see what the machine's mapping of it sees; so nothing is mapped here, and nothing is
//! unsafe.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// What a device behind the rings does.
pub(super) trait Device {
    /// Queues, of all kinds.
    fn queues(&self) -> usize;
    /// The configuration space.
    fn config(&self) -> Vec<u8>;
    /// Serves one request: bytes from the driver, room for the answer.
    fn request(&mut self, queue: usize, out: &[u8], room: usize) -> Vec<u8>;
}

/// Requests of the front end, by the numbers of the vhost-user specification.
mod message {
    pub(super) const GET_FEATURES: u32 = 1;
    pub(super) const SET_MEM_TABLE: u32 = 5;
    pub(super) const SET_VRING_NUM: u32 = 8;
    pub(super) const SET_VRING_ADDR: u32 = 9;
    pub(super) const SET_VRING_BASE: u32 = 10;
    pub(super) const GET_VRING_BASE: u32 = 11;
    pub(super) const SET_VRING_KICK: u32 = 12;
    pub(super) const SET_VRING_CALL: u32 = 13;
    pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(super) const GET_QUEUE_NUM: u32 = 17;
    pub(super) const SET_VRING_ENABLE: u32 = 18;
    pub(super) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(super) const GET_CONFIG: u32 = 24;
}

/// VERSION_1, PROTOCOL_FEATURES, RING_INDIRECT_DESC.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 28;
/// MQ, REPLY_ACK, BACKEND_REQ (without it UML sets up no interrupt), CONFIG.
const PROTOCOL: u64 = 1 << 9 | 1 << 5 | 1 << 3 | 1;
const NEED_REPLY: u32 = 8;
const REPLY: u32 = 5;

/// A stretch of the machine's memory.
struct Region {
    guest: u64,
    size: u64,
    user: u64,
    offset: u64,
    file: File,
}

/// A ring. Addresses are the machine's physical ones.
#[derive(Default)]
struct Ring {
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    next: u16,
    kick: Option<File>,
    call: Option<File>,
    enabled: bool,
}

/// Places for a device's bytes, and their lengths.
type Segments = Vec<(u64, usize)>;

/// A machine that has plugged in.
pub(super) struct Connection<D> {
    socket: UnixStream,
    device: D,
    memory: Vec<Region>,
    rings: Vec<Ring>,
    /// Kept open for the machine's sake.
    back: Option<OwnedFd>,
}

struct Message {
    request: u32,
    flags: u32,
    payload: Vec<u8>,
    files: Vec<OwnedFd>,
}

impl Message {
    fn u32(&self, at: usize) -> u32 {
        u32_at(&self.payload, at)
    }

    fn u64(&self, at: usize) -> u64 {
        u64_at(&self.payload, at)
    }

    fn file(&mut self) -> Option<File> {
        self.files.pop().map(File::from)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<D: Device> Connection<D> {
    pub(super) fn new(socket: UnixStream, device: D) -> Self {
        let rings = (0..device.queues()).map(|_| Ring { enabled: true, ..Ring::default() }).collect();
        Self { socket, device, memory: Vec::new(), rings, back: None }
    }

    /// Serves the machine until it is gone.
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            let mut waiting = vec![PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            let mut queues = Vec::new();
            for (queue, ring) in self.rings.iter().enumerate() {
                if let Some(kick) = &ring.kick {
                    waiting.push(PollFd::new(kick.as_fd(), PollFlags::POLLIN));
                    queues.push(queue);
                }
            }
            poll(&mut waiting, PollTimeout::NONE)?;
            let ready: Vec<bool> = waiting.iter().map(|one| one.any().unwrap_or(true)).collect();
            drop(waiting);
            if ready[0] {
                match self.receive()? {
                    Some(message) => self.handle(message)?,
                    None => return Ok(()),
                }
                continue;
            }
            for (queue, _) in queues.iter().zip(&ready[1..]).filter(|(_, ready)| **ready) {
                let mut count = [0; 8];
                if let Some(kick) = &mut self.rings[*queue].kick {
                    kick.read_exact(&mut count)?;
                }
                self.serve(*queue)?;
            }
        }
    }

    fn receive(&mut self) -> io::Result<Option<Message>> {
        let mut head = [0; 12];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut head)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
        let got = recvmsg(&self.socket, &mut parts, &mut ancillary, flags)?;
        if got.bytes == 0 {
            return Ok(None);
        }
        let mut files = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                files.extend(descriptors);
            }
        }
        let mut payload = vec![0; u32_at(&head, 8) as usize];
        self.socket.read_exact(&mut payload)?;
        Ok(Some(Message { request: u32_at(&head, 0), flags: u32_at(&head, 4), payload, files }))
    }

    fn reply(&mut self, request: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let mut bytes: Vec<u8> = [request, REPLY, length].iter().flat_map(|n| n.to_le_bytes()).collect();
        bytes.extend_from_slice(payload);
        self.socket.write_all(&bytes)
    }

    fn handle(&mut self, mut message: Message) -> io::Result<()> {
        let request = message.request;
        match request {
            message::GET_FEATURES => return self.reply(request, &FEATURES.to_le_bytes()),
            message::GET_PROTOCOL_FEATURES => return self.reply(request, &PROTOCOL.to_le_bytes()),
            message::GET_QUEUE_NUM => {
                let queues = self.rings.len() as u64;
                return self.reply(request, &queues.to_le_bytes());
            }
            message::GET_CONFIG => {
                let mut config = self.device.config();
                let (offset, length) = (message.u32(0) as usize, message.u32(4) as usize);
                config.resize(config.len().max(offset + length), 0);
                let mut payload = message.payload[..12].to_vec();
                payload.extend_from_slice(&config[offset..offset + length]);
                return self.reply(request, &payload);
            }
            message::GET_VRING_BASE => {
                let index = message.u32(0);
                let ring = &mut self.rings[index as usize];
                ring.kick = None;
                let state = [index, u32::from(ring.next)];
                let payload: Vec<u8> = state.iter().flat_map(|n| n.to_le_bytes()).collect();
                return self.reply(request, &payload);
            }
            message::SET_MEM_TABLE => self.map(&mut message),
            message::SET_BACKEND_REQ_FD => self.back = message.files.pop(),
            8..=10 | 12 | 13 | 18 => self.set_ring(&mut message)?,
            _ => {}
        }
        match message.flags & NEED_REPLY {
            0 => Ok(()),
            _ => self.reply(request, &0_u64.to_le_bytes()),
        }
    }

    fn map(&mut self, message: &mut Message) {
        self.memory.clear();
        let files = std::mem::take(&mut message.files);
        for (index, file) in files.into_iter().enumerate() {
            let at = 8 + 32 * index;
            self.memory.push(Region {
                guest: message.u64(at),
                size: message.u64(at + 8),
                user: message.u64(at + 16),
                offset: message.u64(at + 24),
                file: File::from(file),
            });
        }
    }

    fn set_ring(&mut self, message: &mut Message) -> io::Result<()> {
        let index = (message.u32(0) & 0xff) as usize;
        let number = |message: &Message| u16::try_from(message.u32(4)).map_err(io::Error::other);
        if message.request == message::SET_VRING_ADDR {
            let [descriptors, used, available] = [8, 16, 24].map(|at| self.physical(message.u64(at)));
            let ring = &mut self.rings[index];
            (ring.descriptors, ring.used, ring.available) = (descriptors?, used?, available?);
            return Ok(());
        }
        let ring = &mut self.rings[index];
        match message.request {
            message::SET_VRING_NUM => ring.size = number(message)?,
            message::SET_VRING_BASE => ring.next = number(message)?,
            message::SET_VRING_KICK => ring.kick = message.file(),
            message::SET_VRING_CALL => ring.call = message.file(),
            message::SET_VRING_ENABLE => ring.enabled = message.u32(4) != 0,
            _ => {}
        }
        Ok(())
    }

    /// The physical address of one of the front end's own.
    fn physical(&self, user: u64) -> io::Result<u64> {
        let region = self.memory.iter().find(|r| user >= r.user && user - r.user < r.size);
        region.map(|r| r.guest + (user - r.user)).ok_or_else(|| wrong("a ring lies outside of memory"))
    }

    fn place(&self, at: u64, length: usize) -> io::Result<(&File, u64)> {
        let fits = |r: &&Region| at >= r.guest && at - r.guest + length as u64 <= r.size;
        let region = self.memory.iter().find(fits).ok_or_else(|| wrong("an address outside of memory"))?;
        Ok((&region.file, region.offset + (at - region.guest)))
    }

    fn load(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let (file, offset) = self.place(at, length)?;
        file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn store(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let (file, offset) = self.place(at, bytes.len())?;
        file.write_all_at(bytes, offset)
    }

    fn load_u16(&self, at: u64) -> io::Result<u16> {
        Ok(u16_at(&self.load(at, 2)?, 0))
    }

    /// Serves what a ring holds.
    fn serve(&mut self, queue: usize) -> io::Result<()> {
        loop {
            let ring = &self.rings[queue];
            if !ring.enabled || ring.size == 0 || ring.available == 0 {
                return Ok(());
            }
            let (size, available, used, next) = (ring.size, ring.available, ring.used, ring.next);
            if self.load_u16(available + 2)? == next {
                return Ok(());
            }
            let head = self.load_u16(available + 4 + 2 * u64::from(next % size))?;
            let (out, segments) = self.chain(self.rings[queue].descriptors, head)?;
            let room = segments.iter().map(|(_, length)| length).sum();
            let answer = self.device.request(queue, &out, room);
            let mut rest = answer.as_slice();
            for (at, length) in segments {
                let (part, more) = rest.split_at(length.min(rest.len()));
                self.store(at, part)?;
                rest = more;
            }
            let index = self.load_u16(used + 2)?;
            let length = u32::try_from(answer.len()).map_err(io::Error::other)?;
            let entry = [u32::from(head).to_le_bytes(), length.to_le_bytes()].concat();
            self.store(used + 4 + 8 * u64::from(index % size), &entry)?;
            self.store(used + 2, &index.wrapping_add(1).to_le_bytes())?;
            let ring = &mut self.rings[queue];
            ring.next = next.wrapping_add(1);
            if let Some(call) = &mut ring.call {
                call.write_all(&1_u64.to_le_bytes())?;
            }
        }
    }

    /// The driver's bytes in a chain of descriptors, and the places for the device's.
    fn chain(&self, table: u64, head: u16) -> io::Result<(Vec<u8>, Segments)> {
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        const INDIRECT: u16 = 4;
        let (mut table, mut index) = (table, head);
        let (mut out, mut segments) = (Vec::new(), Vec::new());
        for _ in 0..=u16::MAX {
            let descriptor = self.load(table + 16 * u64::from(index), 16)?;
            let (at, length) = (u64_at(&descriptor, 0), u32_at(&descriptor, 8) as usize);
            let flags = u16_at(&descriptor, 12);
            if flags & INDIRECT != 0 {
                (table, index) = (at, 0);
                continue;
            }
            match flags & WRITE {
                0 => out.extend(self.load(at, length)?),
                _ => segments.push((at, length)),
            }
            if flags & NEXT == 0 {
                return Ok((out, segments));
            }
            index = u16_at(&descriptor, 14);
        }
        Err(wrong("a chain of descriptors without an end"))
    }
}
