//! Suggestions for mistyped words ("did you mean …?").

/// The candidate closest to `word`, if at most a third of the word is mistyped (two swapped letters count as one
/// mistake, upper and lower case are equal). Of several the first.
pub fn closest_match<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // A longer word is not a mistyped key or command; the limit also bounds the time.
    if word.is_empty() || word.len() > 100 {
        return None;
    }
    let word = word.to_lowercase();
    let max_distance = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|(distance, c)| *distance <= max_distance && *distance < c.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
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
