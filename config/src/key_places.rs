//! Where the keys of a YAML document stand, in the order in which they are read.
//!
//! The reader of values tells places only in its errors, so a scanner goes over the text before it. What an
//! alias repeats is repeated here, too. Where the scanner finds a fault, the reader gets the text up to
//! there: it has better words for it.
//!
//! Invariants: brackets and indentation are followed [`MAX_DEPTH`] levels deep, and the reader of values,
//! whose time grows with the square of the depth, gets no text that the scanner has not seen.

use std::collections::HashMap;
use std::ops::Range;

use saphyr_parser::{Event, Marker, Parser, ScanError};

/// The most levels of lists and sections in each other.
pub(crate) const MAX_DEPTH: usize = 128;

/// A key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyPlace {
    pub(crate) key: String,
    /// From 1.
    pub(crate) line: usize,
    /// In characters, from 1.
    pub(crate) column: usize,
}

/// The document is deeper than [`MAX_DEPTH`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooDeep {
    pub(crate) line: usize,
}

/// What the scanner found.
#[derive(Debug, Default)]
pub(crate) struct Scanned {
    /// The keys of the document, up to the fault.
    pub(crate) keys: Vec<KeyPlace>,
    /// What is no YAML.
    pub(crate) fault: Option<ScanError>,
}

/// Finds the keys of the documents in `text`; with more than `limit` of them the rest does not matter.
pub(crate) fn key_places(text: &str, limit: usize) -> Result<Scanned, TooDeep> {
    let mut walk = Walk { limit, ..Walk::default() };
    for event in Parser::new_from_str(text) {
        let (event, span) = match event {
            Ok(event) => event,
            // The scanner's own limit, 255 brackets.
            Err(fault) if fault.info() == "recursion limit exceeded" => {
                return Err(TooDeep { line: fault.marker().line() });
            }
            Err(fault) => return Ok(Scanned { keys: walk.keys, fault: Some(fault) }),
        };
        match event {
            Event::MappingStart(anchor, _) => walk.open(NodeKind::Section, anchor),
            Event::SequenceStart(anchor, _) => walk.open(NodeKind::List, anchor),
            Event::MappingEnd | Event::SequenceEnd => walk.close(),
            Event::Scalar(value, _, anchor, _) => walk.scalar(&value, anchor, span.start),
            Event::Alias(anchor) => walk.alias(anchor, span.start),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => {}
        }
        if walk.open.len() > MAX_DEPTH {
            return Err(TooDeep { line: span.start.line() });
        }
    }
    Ok(Scanned { keys: walk.keys, fault: None })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum NodeKind {
    Section,
    List,
}

/// A section or list that is being read.
struct Level {
    kind: NodeKind,
    /// Whether the next node is a key; never in a list.
    is_key_next: bool,
    anchor: usize,
    /// How many keys there were before it.
    first: usize,
}

#[derive(Default)]
struct Walk {
    limit: usize,
    keys: Vec<KeyPlace>,
    open: Vec<Level>,
    /// The keys below each anchor.
    below: HashMap<usize, Range<usize>>,
    /// The text of each anchor on a plain value.
    texts: HashMap<usize, String>,
}

impl Walk {
    fn open(&mut self, kind: NodeKind, anchor: usize) {
        let (is_key_next, first) = (kind == NodeKind::Section, self.keys.len());
        self.open.push(Level { kind, is_key_next, anchor, first });
    }

    fn close(&mut self) {
        let Some(level) = self.open.pop() else { return };
        // Number 0 says that there is no anchor; nobody can name it.
        self.below.insert(level.anchor, level.first..self.keys.len());
        self.pass();
    }

    fn scalar(&mut self, text: &str, anchor: usize, place: Marker) {
        self.texts.insert(anchor, text.to_owned());
        self.text(text, place);
    }

    fn alias(&mut self, anchor: usize, place: Marker) {
        if let Some(text) = self.texts.get(&anchor).cloned() {
            self.text(&text, place);
            return;
        }
        // What is beyond the limit costs nothing, however often an alias repeats it.
        let room = self.limit.saturating_sub(self.keys.len());
        let range = self.below.get(&anchor).cloned().unwrap_or_default();
        let range = range.start..range.end.min(range.start.saturating_add(room));
        let again = self.keys.get(range).map(<[_]>::to_vec).unwrap_or_default();
        self.keys.extend(again);
        self.pass();
    }

    fn text(&mut self, text: &str, place: Marker) {
        let is_key = self.open.last().is_some_and(|level| level.is_key_next);
        if is_key && self.keys.len() < self.limit {
            self.keys.push(KeyPlace { key: text.to_owned(), line: place.line(), column: place.col() + 1 });
        }
        self.pass();
    }

    /// A node has ended: behind a key comes its value, and behind that the next key.
    fn pass(&mut self) {
        if let Some(level) = self.open.last_mut() {
            level.is_key_next = level.kind == NodeKind::Section && !level.is_key_next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<(String, usize, usize)> {
        key_places(text, 1000)
            .unwrap()
            .keys
            .into_iter()
            .map(|place| (place.key, place.line, place.column))
            .collect()
    }

    #[test]
    fn keys_are_found_where_they_stand() {
        let text = "a: 1\n\"b\": {c: [x, {d: e}], f: }\ng:\n  - h: i\n    j: |\n      k: l\n  - m\n";
        let places = told(text);
        let wanted = [("a", 1, 1), ("b", 2, 1), ("c", 2, 7), ("d", 2, 15), ("f", 2, 23), ("g", 3, 1)];
        let wanted = wanted.into_iter().chain([("h", 4, 5), ("j", 5, 5)]);
        assert_eq!(
            places,
            wanted.map(|(key, line, column)| (key.to_owned(), line, column)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn an_alias_repeats_the_keys_below_its_anchor() {
        let names: Vec<String> =
            told("a: &x {b: {c: 1}}\nd: *x\ne: &y f\n").into_iter().map(|(key, ..)| key).collect();
        assert_eq!(names, ["a", "b", "c", "d", "b", "c", "e"]);
    }

    #[test]
    fn a_bomb_costs_no_more_than_its_limit() {
        let mut bomb = String::from("a: &a0 {k: v}\n");
        for level in 1..60 {
            bomb += &format!("b{level}: &a{level} [*a{0}, *a{0}]\n", level - 1);
        }
        assert!(key_places(&bomb, 1000).unwrap().keys.len() <= 1000);
        let keys: Vec<String> = (0..20_000).map(|key| format!("k{key}: 1")).collect();
        let often = format!(
            "a: &a {{{}}}\nb: &b [*a, *a, *a, *a, *a]\nc: [{}]\n",
            keys.join(", "),
            "*b, ".repeat(200_000)
        );
        let begun = std::time::Instant::now();
        assert_eq!(key_places(&often, 50_000).unwrap().keys.len(), 50_000);
        assert!(begun.elapsed().as_secs() < 20);
    }

    #[test]
    fn depth_is_bounded_before_it_costs_time() {
        for part in ["[", "{", "[{a: ", "- ", "? "] {
            let begun = std::time::Instant::now();
            assert!(key_places(&part.repeat((1 << 20) / part.len()), 1000).is_err(), "{part}");
            assert!(begun.elapsed().as_secs() < 20, "{part}");
        }
        let deepest = key_places(&"[".repeat(MAX_DEPTH), 1000).unwrap();
        assert!(deepest.fault.is_some() && deepest.keys.is_empty(), "{deepest:?}");
    }
}
