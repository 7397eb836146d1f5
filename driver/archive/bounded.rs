//! Lists of the head, bounded while they are read: 16 MiB of JSON can hold five million empty strings, which would
//! take a hundred times the memory that an honest head takes.
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
    deserializer.deserialize_seq(Few::<T, MOST>(PhantomData))
}

struct Few<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Few<T, MOST> {
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
    struct Holder {
        #[serde(deserialize_with = "few::<_, _, 2>")]
        list: Vec<String>,
    }

    #[test]
    fn one_item_too_many_is_an_error() {
        let two: Holder = serde_json::from_str(r#"{"list":["a","b"]}"#).unwrap();
        assert_eq!(two.list, ["a", "b"]);
        let three = serde_json::from_str::<Holder>(r#"{"list":["a","b",""]}"#).unwrap_err();
        assert!(three.to_string().contains("more than 2 items"), "{three}");
    }
}
