//! The tail of an archive in a file: found from the end, for only the end says where it begins.
//!
//! The last two blocks are zeros; before them lies the end record, padded to whole blocks, and before that its header
//! block. So the header is searched block by block, from the end, over the few blocks that the record may
//! have. The record says where the body ends and how many digests follow it; the root then proves both.

use crate::archive::end::{self, DIGEST_LEN, EndRecord, RootHasher};
use crate::archive::layout::{self, Role};
use crate::archive::stream::{Digest, Digests, RandomStream};
use crate::archive::tar::{BLOCK, END_OF_ARCHIVE};
use crate::archive::tar_parser::{Event, Member, MemberParser};
use crate::error::{Error, ErrorKind, Result};
use crate::units::StreamOffset;
