//! A partial restore from what comes once, front to back: one pass, which goes on behind damage. What is lost stays zeros, and is listed as
//! ranges of the disks; what never came is lost, too.
//!
//! The medium may have put zeros in the place of bytes that it could not read, so that all behind them has its place; it says where ([`Gaps`]).

use std::cell::Cell;
use std::io::Read;

use super::{
    Lost, RestoreReport, RestoreRequest, RestoredDisk, format_name, method_name, no_disk_begun, note_lost,
    read_options, selected,
};
use crate::archive::manifest::Manifest;
use crate::archive::reader::{Loss, Reader, Visitor};
use crate::archive::stream::{ChunkState, read_pipe};
use crate::crypt::Incoming;
use crate::error::{Error, ErrorKind, Result, sentence};
use crate::job::Control;
use crate::job::target::{TargetDisk, TargetSpec};
use crate::medium::{Gaps, PipeSource};
use crate::table::{CorrespondenceTable, Run};
use crate::units::GuestOffset;

/// Restores what is intact of `input`.
pub(super) fn restore(
    request: &RestoreRequest,
    control: &Control,
    (input, gaps): (impl Read + Send, &Gaps),
) -> Result<RestoreReport> {
    let archive = request.archive.to_string();
    let name = if archive == "-" { "standard input" } else { &archive };
    let nothing = |error: Error| nothing_of(name, error);
    let mut disks = Disks { request, control, disks: Vec::new(), lost: Vec::new() };
    let input = Incoming::open(input, name, &request.identities).map_err(nothing)?;
    let in_clear = !input.is_encrypted();
    let mut reader = Reader::forgiving(&mut disks);
    // What is wrong with a target ends the restore; what is wrong with the archive does not.
    let (refused, unchecked) = (Cell::new(false), Cell::new(false));
    let read = read_pipe(input, name, &read_options(request, control), |chunk| {
        let plain = matches!(chunk.state, ChunkState::Unchecked(_));
        unchecked.set(unchecked.get() || plain);
        let end = chunk.at.get().saturating_add(chunk.bytes.len() as u64);
        let holes = if plain && in_clear { gaps.within(chunk.at.get()..end) } else { Vec::new() };
        reader.salvage(&chunk, &holes).inspect_err(|_| refused.set(true))
    });
    let (mut notes, whole) = match read {
        Err(error) if refused.get() => return Err(nothing(error)),
        Err(error) if error.kind() == ErrorKind::Interrupted || PipeSource::was_told_to_end(&error) => {
            return Err(Error::new(ErrorKind::Interrupted, "the restore was interrupted"));
        }
        Err(error) => (vec![sentence(&error)], false),
        Ok(end) => (end.check(name).err().iter().map(ToString::to_string).collect(), end.is_whole()),
    };
    let salvaged = reader.salvaged()?;
    let Some(head) = salvaged.head else {
        let what = "its head never came";
        return Err(nothing(Error::new(ErrorKind::Incomplete, what)));
    };
    notes.extend(salvaged.adrift);
    notes.extend(gaps.notes());
    let complete = whole && salvaged.complete;
    if !complete && notes.is_empty() {
        notes.push("it ends before its end record".to_owned());
    }
    let (done, damage) = disks.finish(&head)?;
    Ok(RestoreReport {
        archive,
        complete,
        verified: salvaged.checked || !unchecked.get(),
        unread: false,
        damage,
        notes,
        disks: done,
        seconds: 0.0,
    })
}

fn nothing_of(name: &str, error: Error) -> Error {
    match error.kind() {
        ErrorKind::Damaged | ErrorKind::Incomplete => {
            error.within(format!("nothing of '{name}' can be restored in one pass")).with_hint(HINT)
        }
        _ => error,
    }
}

/// What is told where the pass has nothing to go by.
const HINT: &str = "copy the archive into a file: --partial then finds more, by the second copies at its end";

/// A disk that is wanted.
struct Wanted {
    target: String,
    spec: TargetSpec,
    begun: Option<Begun>,
}

struct Begun {
    output: TargetDisk,
    capacity: u64,
    data: u64,
}

struct Disks<'a> {
    request: &'a RestoreRequest,
    control: &'a Control,
    /// By disk number; `None` where a disk is not wanted.
    disks: Vec<Option<Wanted>>,
    lost: Vec<Lost>,
}

impl Disks<'_> {
    fn begun(&mut self, index: usize) -> Option<(&str, &mut Begun)> {
        let wanted = self.disks.get_mut(index)?.as_mut()?;
        Some((&wanted.target, wanted.begun.as_mut()?))
    }

    /// Makes what was begun durable, and says what is lost.
    fn finish(self, head: &Manifest) -> Result<(Vec<RestoredDisk>, Vec<Lost>)> {
        let mut lost = self.lost;
        let mut done = Vec::new();
        self.control.progress.enter("syncing", 0);
        for Wanted { target, spec, begun } in self.disks.into_iter().flatten() {
            let Some(Begun { output, capacity, data }) = begun else {
                let capacity = head.disk(&target).map_or(0, |disk| disk.capacity);
                note_lost(&mut lost, &target, GuestOffset::ZERO, capacity);
                continue;
            };
            output.finish()?;
            done.push(RestoredDisk {
                path: spec.path.display().to_string(),
                format: format_name(spec.format),
                method: method_name(spec.method),
                capacity,
                data,
                shared: false,
                target,
            });
        }
        let lost = joined(lost);
        for disk in &mut done {
            let here = lost.iter().filter(|range| range.disk == disk.target).map(|range| range.length);
            disk.data = disk.data.saturating_sub(here.fold(0, u64::saturating_add));
        }
        match done.is_empty() {
            true => Err(no_disk_begun(&self.request.archive).with_hint(HINT)),
            false => Ok((done, lost)),
        }
    }
}

/// Ranges in the order of disks and addresses, none of them twice.
fn joined(mut lost: Vec<Lost>) -> Vec<Lost> {
    lost.sort_by(|a, b| (&a.disk, a.start).cmp(&(&b.disk, b.start)));
    let mut joined: Vec<Lost> = Vec::with_capacity(lost.len());
    for range in lost {
        match joined
            .last_mut()
            .filter(|last| last.disk == range.disk && last.start + last.length >= range.start)
        {
            Some(last) => last.length = last.length.max(range.start + range.length - last.start),
            None => joined.push(range),
        }
    }
    joined
}

impl Visitor for Disks<'_> {
    fn head(&mut self, head: &Manifest) -> Result<()> {
        let mut specs = selected(self.request, head)?;
        for disk in &head.disks {
            let place = specs.iter().position(|(target, _)| *target == disk.target);
            let wanted = place.map(|place| specs.swap_remove(place));
            self.disks.push(wanted.map(|(target, spec)| Wanted { target, spec, begun: None }));
        }
        let data = head.disks.iter().zip(&self.disks).filter(|(_, wanted)| wanted.is_some());
        let total = data.map(|(disk, _)| disk.dense_length).fold(0, u64::saturating_add);
        self.control.progress.enter("restoring", total);
        Ok(())
    }

    fn disk(&mut self, index: usize, table: &CorrespondenceTable) -> Result<()> {
        let Some(Some(wanted)) = self.disks.get_mut(index) else { return Ok(()) };
        let output = TargetDisk::open_blank(&wanted.spec, table)?;
        wanted.begun = Some(Begun { output, capacity: table.capacity(), data: table.dense_len() });
        Ok(())
    }

    fn data(&mut self, index: usize, piece: &Run, bytes: &[u8]) -> Result<()> {
        self.control.progress.add(piece.len);
        let Some((_, begun)) = self.begun(index) else { return Ok(()) };
        begun.output.write(piece, bytes)
    }

    fn lost(&mut self, index: usize, piece: &Run, loss: Loss) -> Result<()> {
        const ZEROS: &[u8] = &[0; 64 << 10];
        let Some((target, begun)) = self.begun(index) else { return Ok(()) };
        let target = target.to_owned();
        // What was written before it was known to be wrong is taken back.
        let mut at = if loss == Loss::Given { 0 } else { piece.len };
        while at < piece.len {
            let len = (piece.len - at).min(ZEROS.len() as u64);
            let (guest, dense) = (piece.guest.saturating_add(at), piece.dense.saturating_add(at));
            let zeros = ZEROS.get(..usize::try_from(len).unwrap_or(0)).unwrap_or_default();
            begun.output.write(&Run { guest, len, dense }, zeros)?;
            at += len;
        }
        note_lost(&mut self.lost, &target, piece.guest, piece.len);
        Ok(())
    }
}

#[cfg(test)]
#[path = "salvage_tests.rs"]
mod tests;
