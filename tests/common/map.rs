//! `virtfold map` against `qemu-img map`: both cut at all of their borders, then piece by piece equal.

use std::collections::BTreeSet;

use serde_json::Value;

use super::image::Image;
use super::run::{run, tool, virtfold};

/// What a map says about one range of the disk.
#[derive(Clone, Debug, PartialEq)]
struct Piece {
    start: u64,
    length: u64,
    depth: u64,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    offset: Option<u64>,
}

impl Piece {
    fn parse(value: &Value) -> Self {
        let number = |name: &str| value[name].as_u64().unwrap_or_else(|| panic!("'{name}' in {value}"));
        let flag = |name: &str| value[name].as_bool().unwrap_or_else(|| panic!("'{name}' in {value}"));
        Self {
            start: number("start"),
            length: number("length"),
            depth: number("depth"),
            present: flag("present"),
            zero: flag("zero"),
            data: flag("data"),
            compressed: flag("compressed"),
            offset: value.get("offset").map(|_| number("offset")),
        }
    }

    fn end(&self) -> u64 {
        self.start + self.length
    }

    /// The part of it from `start` to `end`.
    fn cut(&self, start: u64, end: u64) -> Self {
        let offset = self.offset.map(|offset| offset + (start - self.start));
        Self { start, length: end - start, offset, ..self.clone() }
    }
}

fn pieces(json: &Value, who: &str) -> Vec<Piece> {
    let all: Vec<Piece> =
        json.as_array().unwrap_or_else(|| panic!("{who}: no list")).iter().map(Piece::parse).collect();
    let mut at = 0;
    for piece in &all {
        assert_eq!(piece.start, at, "{who}: a gap or an overlap before {piece:?}");
        assert!(piece.length > 0, "{who}: {piece:?} is empty");
        at = piece.end();
    }
    all
}

/// Cuts `pieces` at every border in `borders` that lies inside.
fn cut_at(pieces: &[Piece], borders: &BTreeSet<u64>) -> Vec<Piece> {
    let mut out = Vec::new();
    for piece in pieces {
        let mut start = piece.start;
        for &border in borders.range(piece.start + 1..=piece.end()) {
            out.push(piece.cut(start, border));
            start = border;
        }
    }
    out
}

/// Fails unless both maps of `image` say the same.
///
/// Read-ahead of the kernel may turn preallocated space into data for SEEK_DATA between the two looks, so
/// maps that differ are taken again, twice.
pub(crate) fn assert_maps_agree(image: &Image) {
    for _ in 0..2 {
        let (theirs, ours) = both_maps(image);
        if theirs == ours {
            return;
        }
    }
    let (theirs, ours) = both_maps(image);
    for (theirs, ours) in theirs.iter().zip(&ours) {
        assert_eq!(ours, theirs, "virtfold map (left) differs from qemu-img map (right) of {}", image.text());
    }
    assert_eq!(ours.len(), theirs.len(), "the maps of {} end at different places", image.text());
}

/// The map by qemu-img and by virtfold, cut at each other's borders.
fn both_maps(image: &Image) -> (Vec<Piece>, Vec<Piece>) {
    let format = image.format.name();
    let theirs = run(&mut tool("qemu-img", ["map", "--output=json", "-f", format, image.text()])).ok();
    let ours = run(&mut virtfold(["map", image.text(), "--format", format, "--json"])).ok();
    let (theirs, ours) = (pieces(&theirs.json(), "qemu-img map"), pieces(&ours.json(), "virtfold map"));
    let borders: BTreeSet<u64> = theirs.iter().chain(&ours).map(Piece::end).collect();
    (cut_at(&theirs, &borders), cut_at(&ours, &borders))
}
