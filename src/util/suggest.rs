//! "Did you mean …?"

/// The candidate that is nearest to `word`, if one is near enough to be what was meant: at most a
/// third of the word mistyped (swapped neighbours count as one mistake), upper and lower case alike.
/// Of several equally near ones the first.
pub fn closest_match<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // A word longer than any key or command is no typing mistake; the bound also keeps this cheap.
    if word.is_empty() || word.len() > 100 {
        return None;
    }
    let letters = |s: &str| s.to_lowercase().chars().collect::<Vec<char>>();
    let wanted = letters(word);
    let limit = (wanted.len() / 3).max(1);
    candidates
        .into_iter()
        .map(|c| (distance(&wanted, &letters(c)), c))
        .filter(|(d, c)| *d <= limit && *d < c.chars().count())
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// Edit distance with transpositions of neighbours (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = change.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_mistake_finds_its_word() {
        let keys = ["listen", "data_dir", "store", "worker_heartbeat_timeout"];
        for (typed, meant) in [
            ("lisen", "listen"),
            ("LISTEN", "listen"),
            ("sotre", "store"),
            ("data-dir", "data_dir"),
            ("worker_hartbeat_timout", "worker_heartbeat_timeout"),
        ] {
            assert_eq!(closest_match(typed, keys), Some(meant), "{typed}");
        }
    }

    #[test]
    fn a_different_word_finds_nothing() {
        for typed in ["", "banana", "x", "s", &"listen".repeat(50)] {
            assert_eq!(closest_match(typed, ["listen", "store", "y"]), None, "{typed}");
        }
    }
}
