//! The one rule for names: of machines, volumes, private networks, images and host names. A name is part of paths.

/// More would not fit into the path of a socket beside the machine's folder (107 bytes, unix(7)).
pub const LONGEST: usize = 40;

/// Checks a name: docker's rule, `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, and at most [`LONGEST`] bytes.
pub fn parse(text: &str) -> Result<String, String> {
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || !text.chars().all(is_plain) {
        Err(format!("`{text}` is not a name: letters, digits, `_`, `.` and `-`, a letter or digit first"))
    } else if text.len() > LONGEST {
        Err(format!("`{text}` is longer than {LONGEST} characters"))
    } else {
        Ok(text.to_owned())
    }
}

/// A name that is much like a word of somebody else's: an image's, a folder's. `otherwise` where nothing of it is left.
pub fn like(word: &str, otherwise: &str) -> String {
    let plain: String = word.chars().map(|c| if is_plain(c) { c } else { '-' }).collect();
    let plain = plain.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    match &plain[..plain.len().min(LONGEST)] {
        "" => otherwise.to_owned(),
        name => name.to_owned(),
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_.-".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        for name in ["web", "a.b_c-d", "0", &"x".repeat(LONGEST)] {
            assert_eq!(parse(name).as_deref(), Ok(name));
        }
        let long = "x".repeat(LONGEST + 1);
        for name in
            ["", ".", "..", "../x", "a/b", "/a", "-a", "_a", "a b", "a\nb", "a\0b", "ä", "a\u{202e}", &long]
        {
            assert!(parse(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_name_is_made_of_any_word() {
        for (word, name) in
            [("web", "web"), ("..x y", "x-y"), ("日本", "image"), ("", "image"), ("-_-a", "a")]
        {
            assert_eq!(like(word, "image"), name);
        }
        assert!(parse(&like(&"ab/".repeat(99), "image")).is_ok());
    }
}
