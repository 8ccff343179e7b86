//! `.dockerignore`, as moby's `patternmatcher` reads it: the last pattern that matches a path, or a folder above it,
//! decides.

/// The patterns of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DockerIgnore {
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    parts: Vec<Part>,
    keeps: bool,
}

/// What one part of a pattern stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// `**`: any number of names.
    Deep,
    /// One name.
    Name(Vec<Token>),
    /// No name at all: a set without its end.
    Nothing,
}

/// A piece of Go's `filepath.Match` within one name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// `*`.
    Star,
    /// `?`.
    Any,
    /// A letter, perhaps behind `\`.
    Letter(char),
    /// `[a-z]`, `[^a]`: ranges, and whether they are what may not be there.
    Set(Vec<(char, char)>, bool),
}

impl DockerIgnore {
    /// Reads the patterns; comments and empty lines are passed over.
    pub fn parse(text: &str) -> DockerIgnore {
        let patterns = text.lines().filter_map(|line| {
            let line = line.trim_start_matches('\u{feff}');
            if line.starts_with('#') {
                return None;
            }
            let line = line.trim();
            let (line, keeps) = line.strip_prefix('!').map_or((line, false), |rest| (rest.trim(), true));
            let mut parts: Vec<&str> = Vec::new();
            for part in line.split('/') {
                match part {
                    "" | "." => {}
                    ".." => {
                        parts.pop();
                    }
                    _ => parts.push(part),
                }
            }
            let parts: Vec<Part> = parts.into_iter().map(Part::parse).collect();
            (!parts.is_empty()).then_some(Pattern { parts, keeps })
        });
        DockerIgnore { patterns: patterns.collect() }
    }

    /// True if a path, relative to the context, is left out of it.
    pub fn ignores(&self, path: &str) -> bool {
        let names: Vec<&str> = path.split('/').collect();
        self.patterns.iter().fold(
            false,
            |ignored, pattern| {
                if pattern.matches(&names) { !pattern.keeps } else { ignored }
            },
        )
    }

    /// How many patterns there are.
    pub fn len(&self) -> usize {
        self.patterns.len()
    }

    /// True if nothing is ignored.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// True if something below an ignored folder may be wanted after all.
    pub fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.keeps)
    }
}

impl Pattern {
    /// True for the path, or a folder above it. All ways in which `**` may be read are followed at once, part by part.
    fn matches(&self, names: &[&str]) -> bool {
        // After how many names the parts so far may have ended.
        let mut ends = vec![false; names.len() + 1];
        ends[0] = true;
        for part in &self.parts {
            let mut next = vec![false; names.len() + 1];
            match part {
                Part::Deep => {
                    let first = ends.iter().position(|end| *end).unwrap_or(next.len());
                    next[first..].fill(true);
                }
                Part::Name(tokens) => {
                    for (at, name) in names.iter().enumerate().filter(|(at, _)| ends[*at]) {
                        next[at + 1] = matches_name(tokens, name);
                    }
                }
                Part::Nothing => {}
            }
            ends = next;
        }
        ends[1..].contains(&true)
    }
}

impl Part {
    fn parse(text: &str) -> Part {
        if text == "**" {
            return Part::Deep;
        }
        let letters: Vec<char> = text.chars().collect();
        let mut rest = letters.as_slice();
        let mut tokens = Vec::new();
        while let [first, after @ ..] = rest {
            let (token, later) = match (first, after) {
                ('*', _) => (Token::Star, after),
                ('?', _) => (Token::Any, after),
                ('[', _) => {
                    let Some(end) = after.iter().skip(1).position(|&letter| letter == ']') else {
                        return Part::Nothing;
                    };
                    let (set, later) = (&after[..end + 1], &after[end + 2..]);
                    let (set, negated) = set.strip_prefix(&['^']).map_or((set, false), |set| (set, true));
                    (Token::Set(ranges(set), negated), later)
                }
                ('\\', [letter, later @ ..]) => (Token::Letter(*letter), later),
                (letter, _) => (Token::Letter(*letter), after),
            };
            tokens.push(token);
            rest = later;
        }
        Part::Name(tokens)
    }
}

fn ranges(set: &[char]) -> Vec<(char, char)> {
    let mut ranges = Vec::new();
    let mut rest = set;
    loop {
        rest = match rest {
            [] => return ranges,
            [low, '-', high, later @ ..] => {
                ranges.push((*low, *high));
                later
            }
            [one, later @ ..] => {
                ranges.push((*one, *one));
                later
            }
        };
    }
}

/// Where a star took too little, the last one takes a letter more; those before it never have to.
fn matches_name(tokens: &[Token], name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    let (mut token, mut letter) = (0, 0);
    let mut last_star = None;
    while letter < name.len() {
        match tokens.get(token) {
            Some(Token::Star) => {
                last_star = Some((token, letter));
                token += 1;
            }
            Some(one) if one.takes(name[letter]) => (token, letter) = (token + 1, letter + 1),
            _ => {
                let Some((star, from)) = last_star else { return false };
                last_star = Some((star, from + 1));
                (token, letter) = (star + 1, from + 1);
            }
        }
    }
    tokens[token..].iter().all(|token| *token == Token::Star)
}

impl Token {
    fn takes(&self, letter: char) -> bool {
        match self {
            Token::Star => false,
            Token::Any => true,
            Token::Letter(own) => *own == letter,
            Token::Set(ranges, negated) => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&letter)) != *negated
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_docker_matches_them() {
        let ignore = DockerIgnore::parse(
            "# comment\n\n*.log\n/target\nsrc/**/*.tmp\n*/cache\n!keep.log\ndocs/[a-c]?.md\n./build/\n",
        );
        let ignored = [
            "a.log",
            "target",
            "target/x/y",
            "src/a.tmp",
            "src/x/y/b.tmp",
            "x/cache/z",
            "docs/b1.md",
            "build/o",
        ];
        let kept = [
            "keep.log",
            "x/a.log",
            "src/target",
            "src/a.tmpx",
            "cache",
            "docs/d1.md",
            "docs/b.md",
            "Dockerfile",
        ];
        for path in ignored {
            assert!(ignore.ignores(path), "{path}");
        }
        for path in kept {
            assert!(!ignore.ignores(path), "{path}");
        }
    }

    #[test]
    fn sets_and_escapes() {
        let matches = |pattern: &str, name: &str| DockerIgnore::parse(pattern).ignores(name);
        for (pattern, name, expected) in [
            ("[abc]", "b", true),
            ("[abc]", "d", false),
            ("[^abc]", "d", true),
            ("[^abc]", "a", false),
            ("[a-c]x", "bx", true),
            ("[]a]", "]", true),
            ("[a", "a", false),
            ("[", "[", false),
            ("[]", "]", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a\\", "a\\", true),
            ("?", "é", true),
            ("a?", "a", false),
            ("a*b*c", "aXbbYc", true),
            ("a*b*c", "aXbbY", false),
            ("*a", "ba", true),
            ("**", "a/b", true),
            ("a/**", "a", true),
            ("a/**", "b", false),
            ("**/b", "b", true),
            ("**/b/**/d", "a/b/c/c/d/e", true),
            ("**/b/**/d", "a/b/c", false),
            ("a/b", "a", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} and {name}");
        }
    }

    /// With every way of reading tried in turn these would take longer than the machine lasts.
    #[test]
    fn many_stars_take_no_time() {
        let deep = DockerIgnore::parse(&format!("{}x", "**/".repeat(200)));
        assert!(!deep.ignores(&"a/".repeat(2000)));
        assert!(deep.ignores(&format!("{}x", "a/".repeat(200))));
        let wide = DockerIgnore::parse(&format!("{}x", "*a".repeat(100)));
        assert!(!wide.ignores(&"a".repeat(255)));
        assert!(wide.ignores(&format!("{}x", "a".repeat(255))));
    }

    #[test]
    fn the_last_match_decides() {
        let ignore = DockerIgnore::parse("*\n!src\nsrc/secret");
        assert!(ignore.ignores("readme") && !ignore.ignores("src/main.rs") && ignore.ignores("src/secret"));
        assert!(ignore.has_exceptions());
    }
}
