//! `.dockerignore`, as moby's `patternmatcher` reads it: the last pattern that matches a path, or a folder above it,
//! decides.

/// The patterns of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DockerIgnore {
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    parts: Vec<String>,
    keeps: bool,
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
            let mut parts: Vec<String> = Vec::new();
            for part in line.split('/') {
                match part {
                    "" | "." => {}
                    ".." => {
                        parts.pop();
                    }
                    _ => parts.push(part.to_owned()),
                }
            }
            (!parts.is_empty()).then_some(Pattern { parts, keeps })
        });
        DockerIgnore { patterns: patterns.collect() }
    }

    /// True if a path, relative to the context, is left out of it.
    pub fn ignores(&self, path: &str) -> bool {
        let names: Vec<&str> = path.split('/').collect();
        self.patterns.iter().fold(false, |ignored, pattern| {
            let matches = (1..=names.len()).any(|depth| matches_path(&pattern.parts, &names[..depth]));
            if matches { !pattern.keeps } else { ignored }
        })
    }

    /// True if something below an ignored folder may be wanted after all.
    pub fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.keeps)
    }
}

fn matches_path(pattern: &[String], names: &[&str]) -> bool {
    match (pattern.split_first(), names.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "**" => {
            (0..=names.len()).any(|skipped| matches_path(rest, &names[skipped..]))
        }
        (Some((first, rest)), Some((name, below))) => {
            let pattern: Vec<char> = first.chars().collect();
            let name: Vec<char> = name.chars().collect();
            matches_name(&pattern, &name) && matches_path(rest, below)
        }
        _ => false,
    }
}

/// Go's `filepath.Match` within one name: `*`, `?`, `[a-z]`, `[^a]` and `\`.
fn matches_name(pattern: &[char], name: &[char]) -> bool {
    match pattern {
        [] => name.is_empty(),
        ['*', rest @ ..] => (0..=name.len()).any(|taken| matches_name(rest, &name[taken..])),
        ['?', rest @ ..] => !name.is_empty() && matches_name(rest, &name[1..]),
        ['[', rest @ ..] => {
            let Some(end) = rest.iter().skip(1).position(|&c| c == ']').map(|at| at + 1) else {
                return false;
            };
            let Some((&first, name_rest)) = name.split_first() else { return false };
            let (set, negated) = match &rest[..end] {
                ['^', set @ ..] => (set, true),
                set => (set, false),
            };
            in_set(set, first) != negated && matches_name(&rest[end + 1..], name_rest)
        }
        ['\\', literal, rest @ ..] | [literal, rest @ ..] => {
            name.first() == Some(literal) && matches_name(rest, &name[1..])
        }
    }
}

fn in_set(set: &[char], letter: char) -> bool {
    match set {
        [] => false,
        [low, '-', high, rest @ ..] => (*low..=*high).contains(&letter) || in_set(rest, letter),
        [one, rest @ ..] => *one == letter || in_set(rest, letter),
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
    fn the_last_match_decides() {
        let ignore = DockerIgnore::parse("*\n!src\nsrc/secret");
        assert!(ignore.ignores("readme") && !ignore.ignores("src/main.rs") && ignore.ignores("src/secret"));
        assert!(ignore.has_exceptions());
    }
}
