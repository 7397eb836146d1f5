//! Patterns of names: `*` is any text, `?` one character, `[a-z]`, `[!a-z]` one of a set; everything else
//! stands for itself. A pattern takes the whole name. There are neither braces nor escapes; `[*]` is a star.
//!
//! Matching walks pattern and name once and goes back to the last star only, so it takes at most the product
//! of both lengths.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer};
use serde::{Serialize, Serializer};

/// The longest pattern, characters.
const MAX: usize = 256;

/// A pattern of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    text: String,
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    /// Any text.
    Star,
    /// One character that is in one of these ranges, or in none.
    One { ranges: Vec<(char, char)>, inside: bool },
}

value!(
    Glob,
    "a name or a pattern",
    json_schema!({
        "title": "a name, or a pattern with `*`, `?` and `[a-z]`",
        "type": "string",
        "minLength": 1,
        "maxLength": MAX,
        "examples": ["web", "db-*"],
    })
);

impl Glob {
    /// The one name that it takes; `None` for a pattern.
    pub fn literal(&self) -> Option<&str> {
        (!self.text.contains(['*', '?', '['])).then_some(self.text.as_str())
    }

    /// Whether it takes the whole of `name`.
    pub fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut piece, mut at) = (0, 0);
        // The last star: the piece behind it, and where the name goes on when it takes one character more.
        let mut star: Option<(usize, usize)> = None;
        loop {
            match (self.pieces.get(piece), name.get(at)) {
                (Some(Piece::Star), _) => {
                    star = Some((piece + 1, at));
                    piece += 1;
                    continue;
                }
                (Some(Piece::One { ranges, inside }), Some(c))
                    if ranges.iter().any(|(from, to)| (from..=to).contains(&c)) == *inside =>
                {
                    piece += 1;
                    at += 1;
                    continue;
                }
                (None, None) => return true,
                _ => {}
            }
            match star {
                Some((behind, taken)) if taken < name.len() => {
                    star = Some((behind, taken + 1));
                    (piece, at) = (behind, taken + 1);
                }
                _ => return false,
            }
        }
    }
}

impl FromStr for Glob {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.chars().count() > MAX {
            return Err(format!("a pattern has 1 to {MAX} characters"));
        }
        if text.chars().any(char::is_control) {
            return Err("a pattern has no control characters".to_owned());
        }
        let mut pieces = Vec::new();
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            pieces.push(match c {
                // Several stars are one.
                '*' if pieces.last() == Some(&Piece::Star) => continue,
                '*' => Piece::Star,
                '?' => Piece::One { ranges: Vec::new(), inside: false },
                '[' => {
                    let (set, behind) = set(rest.as_str()).map_err(|why| format!("'{text}': {why}"))?;
                    rest = behind.chars();
                    set
                }
                c => Piece::One { ranges: vec![(c, c)], inside: true },
            });
        }
        Ok(Self { text: text.to_owned(), pieces })
    }
}

/// The set that begins behind `[`, and what follows its `]`. A `]` that stands first is one of the set.
fn set(text: &str) -> Result<(Piece, &str), &'static str> {
    let (inside, body) = match text.strip_prefix(['!', '^']) {
        Some(body) => (false, body),
        None => (true, text),
    };
    let first = body.chars().next().map_or(0, char::len_utf8);
    let end = body.get(first..).and_then(|more| more.find(']')).map(|at| first + at);
    let end = end.ok_or("a '[' has no ']'; to mean the bracket itself write '[[]'")?;
    let chars: Vec<char> = body[..end].chars().collect();
    let mut ranges = Vec::new();
    let mut rest = chars.as_slice();
    while let Some((from, more)) = rest.split_first() {
        rest = match more {
            ['-', to, more @ ..] => {
                if from > to {
                    return Err("a range in '[]' goes backwards");
                }
                ranges.push((*from, *to));
                more
            }
            more => {
                ranges.push((*from, *from));
                more
            }
        };
    }
    Ok((Piece::One { ranges, inside }, &body[end + 1..]))
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn glob(text: &str) -> Glob {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// What the grammar says, by trying everything.
    fn naive(pattern: &[char], name: &[char]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            (['*', rest @ ..], _) => (0..=name.len()).any(|taken| naive(rest, &name[taken..])),
            (['?', rest @ ..], [_, more @ ..]) => naive(rest, more),
            (['[', '!', from, '-', to, ']', rest @ ..], [c, more @ ..]) => {
                !(from..=to).contains(&c) && naive(rest, more)
            }
            (['[', from, '-', to, ']', rest @ ..], [c, more @ ..]) => {
                (from..=to).contains(&c) && naive(rest, more)
            }
            (['[', one, ']', rest @ ..], [c, more @ ..]) => one == c && naive(rest, more),
            ([own, rest @ ..], [c, more @ ..]) => own == c && naive(rest, more),
            ([], _) | (_, []) => false,
        }
    }

    proptest! {
        #[test]
        fn it_matches_as_the_grammar_says(pattern in "([abü*?]|\\[[a*]\\]|\\[a-b\\]|\\[!a-a\\]){1,8}", name in "[abcü*]{0,8}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(glob(&pattern).matches(&name), naive(&chars(&pattern), &chars(&name)));
        }

        #[test]
        fn no_text_makes_it_panic(pattern in ".{0,20}|[\\[\\]!^a-c*-]{0,12}", name in ".{0,20}") {
            if let Ok(glob) = pattern.parse::<Glob>() {
                prop_assert_eq!(glob.to_string(), pattern);
                glob.matches(&name);
            }
        }

        #[test]
        fn a_plain_name_takes_itself_alone(name in "[a-z0-9_.-]{1,20}", other in "[a-z0-9_.-]{1,20}") {
            prop_assert!(glob(&name).matches(&name));
            prop_assert_eq!(glob(&name).matches(&other), name == other);
        }
    }

    #[test]
    fn sets_and_ends() {
        for (pattern, name, takes) in [
            ("[abc]x", "bx", true),
            ("[!abc]x", "bx", false),
            ("[^abc]x", "dx", true),
            ("[]a]", "]", true),
            ("[!]]", "]", false),
            ("[a-]", "-", true),
            ("[[]x", "[x", true),
            ("vd[a-d]", "vde", false),
            ("*", "", true),
            ("?", "", false),
            ("web", "web2", false),
            ("eb", "web", false),
            ("a]", "a]", true),
            ("{a,b}", "a", false),
        ] {
            assert_eq!(glob(pattern).matches(name), takes, "{pattern} {name}");
        }
        for bad in ["", "[", "a[bc", "[]", "[!]", "[z-a]", "a\nb", &"x".repeat(257)] {
            assert!(bad.parse::<Glob>().is_err(), "{bad}");
        }
    }

    /// The worst that a pattern can ask for ends soon.
    #[test]
    fn many_stars_take_no_time() {
        let pattern = glob(&"*a".repeat(128));
        assert!(!pattern.matches(&("a".repeat(127) + &"b".repeat(100_000))));
    }
}
