//! 'Did you mean': the known word nearest to what was written.

/// Words longer than this are compared with nothing; no key is nearly as long.
const MAX_WORD: usize = 64;

/// The word of `known` that `written` looks like: an edit distance of at most a third of its length, and
/// of at most 3; the nearest, and of equals the first. `None` where nothing is near.
pub(crate) fn nearest<'w>(written: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let written: Vec<char> = written.to_lowercase().chars().take(MAX_WORD + 1).collect();
    if written.len() > MAX_WORD {
        return None;
    }
    let near = known.into_iter().map(|word| (distance(&written, word), word));
    near.filter(|(d, word)| *d <= (word.chars().count().max(3) / 3).min(3))
        .min_by_key(|(d, _)| *d)
        .map(|(_, w)| w)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`; `_` counts as `-`.
fn distance(a: &[char], b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let same = |x: &char, y: &char| x == y || (*x == '_' && *y == '-');
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let replaced = above[j] + usize::from(!same(x, y));
            let mut best = replaced.min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && same(x, &b[j - 1]) && same(&a[i - 1], y) {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_their_word_and_strangers_none() {
        let known = ["compress", "layout", "block-size", "limit-rate", "workers", "on"];
        for (written, meant) in [
            ("compres", Some("compress")),
            ("Compress", Some("compress")),
            ("compression", None),
            ("layuot", Some("layout")),
            ("block_size", Some("block-size")),
            ("blocksize", Some("block-size")),
            ("worker", Some("workers")),
            ("of", Some("on")),
            ("retention", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, known), meant, "{written}");
        }
        assert_eq!(nearest(&"x".repeat(1 << 20), known), None);
    }
}
