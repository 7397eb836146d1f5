//! Lists of the head, bounded while they are read: 16 MiB of JSON can hold five million empty strings, which
//! would take a hundred times the memory that an honest head takes.
//!
//! Imports: nothing of the crate.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// Reads a list of at most `MOST` items.
///
/// # Errors
/// That of the item, or that there are more.
pub(super) fn few<'de, D, T, const MOST: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(BoundedVec::<T, MOST>(PhantomData))
}

/// Whether JSON is nested more than `most` deep. (The JSON reader bounds what it keeps, not what it passes
/// over.)
pub(super) fn is_deeper(json: &str, most: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > most {
            return true;
        }
    }
    false
}

struct BoundedVec<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for BoundedVec<T, MOST> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MOST} items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
        let mut read = Vec::new();
        while let Some(item) = items.next_element()? {
            if read.len() == MOST {
                return Err(A::Error::custom(format_args!("a list has more than {MOST} items")));
            }
            read.push(item);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct BoundedVecVisitor {
        #[serde(deserialize_with = "few::<_, _, 2>")]
        list: Vec<String>,
    }

    #[test]
    fn depth_is_counted_outside_of_strings() {
        assert!(!is_deeper(r#"{"a":[1,[2]],"b":"[[[[\"[["}"#, 3));
        assert!(is_deeper(r#"{"a":[1,[2]]}"#, 2));
        assert!(is_deeper(&"[".repeat(100_000), 128));
    }

    #[test]
    fn one_item_too_many_is_an_error() {
        let two: BoundedVecVisitor = serde_json::from_str(r#"{"list":["a","b"]}"#).unwrap();
        assert_eq!(two.list, ["a", "b"]);
        let three = serde_json::from_str::<BoundedVecVisitor>(r#"{"list":["a","b",""]}"#).unwrap_err();
        assert!(three.to_string().contains("more than 2 items"), "{three}");
    }
}
