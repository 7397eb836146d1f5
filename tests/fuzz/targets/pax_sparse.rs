//! An archive's stream that nobody vouches for: headers, sparse maps, allocation tables, recovery copies, digests.
//!
//! The stream is parsed twice, whole and in small pieces, and both must find the same: a parser that is pushed
//! must not care where the pieces end.

#![no_main]

use libfuzzer_sys::fuzz_target;
use virtfold::archive::allocation_csv::CsvParser;
use virtfold::archive::end::{DigestsParser, EndRecord};
use virtfold::archive::layout::Role;
use virtfold::archive::recovery::RecoveryParser;
use virtfold::archive::sparse_parser::{MapParser, MapPlace};
use virtfold::archive::tar_parser::{Event, Member, MemberParser};
use virtfold::units::StreamOffset;

fuzz_target!(|data: &[u8]| {
    let Some((&piece, stream)) = data.split_first() else { return };
    let whole = parse(stream, stream.len().max(1));
    let pieces = parse(stream, usize::from(piece).max(1));
    assert_eq!(whole, pieces, "what is found depends on where the pieces end");
});

/// What is inside of a member.
enum Content {
    Map(MapParser),
    Csv(CsvParser),
    Recovery(RecoveryParser),
    Digests(DigestsParser),
    End(Vec<u8>, StreamOffset),
    Other,
}

/// Everything that was found, as text, up to the first error.
fn parse(stream: &[u8], piece: usize) -> Vec<String> {
    let mut found = Vec::new();
    let mut parser = MemberParser::new();
    let mut content = Content::Other;
    for mut bytes in stream.chunks(piece) {
        loop {
            match parser.feed(&mut bytes) {
                Ok(None) => break,
                Ok(Some(Event::Begin(member))) => {
                    content = Content::of(&member);
                    found.push(format!("{member:?}"));
                }
                Ok(Some(Event::Content(bytes))) => {
                    if content.feed(bytes, &mut found).is_none() {
                        content = Content::Other;
                    }
                }
                Ok(Some(Event::End)) => content.finish(&mut found),
                Ok(Some(Event::EndOfArchive)) => found.push("end".to_owned()),
                Err(error) => {
                    // The place in the message may be that of the piece.
                    found.push(format!("{:?}", error.kind()));
                    return found;
                }
            }
        }
    }
    found.push(format!("{:?}", parser.finish().is_ok()));
    found
}

impl Content {
    fn of(member: &Member) -> Self {
        let at = member.content_at;
        match (Role::of(&member.name), member.realsize) {
            (Role::Disk(target), Some(realsize)) => {
                Self::Map(MapParser::new(target, MapPlace::member(member.size, realsize), at))
            }
            (Role::Allocation(_), _) => Self::Csv(CsvParser::new(&member.name, 1 << 30, at)),
            (Role::RecoveryMap(target), _) => Self::Recovery(RecoveryParser::new(target, member.size, at)),
            (Role::Digests, _) => Self::Digests(DigestsParser::new()),
            (Role::End, _) => Self::End(Vec::new(), at),
            _ => Self::Other,
        }
    }

    /// `None` after an error: the parser is of no further use.
    fn feed(&mut self, mut bytes: &[u8], found: &mut Vec<String>) -> Option<()> {
        loop {
            let next = match self {
                Self::Map(map) => map.feed(&mut bytes).map(|run| run.map(|run| format!("{run:?}"))),
                Self::Csv(csv) => csv.feed(&mut bytes).map(|row| row.map(|row| format!("{row:?}"))),
                Self::Recovery(copy) => copy.feed(&mut bytes).map(|run| run.map(|run| format!("{run:?}"))),
                Self::Digests(digests) => Ok(digests.feed(&mut bytes).map(|digest| format!("{digest:?}"))),
                Self::End(record, _) => {
                    record.extend_from_slice(bytes);
                    Ok(None)
                }
                Self::Other => Ok(None),
            };
            match next {
                Ok(Some(text)) => found.push(text),
                Ok(None) => return Some(()),
                Err(_) => {
                    found.push("bad content".to_owned());
                    return None;
                }
            }
        }
    }

    fn finish(&self, found: &mut Vec<String>) {
        let good = match self {
            Self::Map(map) => map.finish().is_ok(),
            Self::Csv(csv) => csv.finish().is_ok(),
            Self::Recovery(copy) => copy.finish().is_ok(),
            Self::Digests(digests) => digests.is_between(),
            Self::End(record, at) => EndRecord::parse(record, *at).is_ok(),
            Self::Other => true,
        };
        found.push(format!("{good}"));
    }
}
