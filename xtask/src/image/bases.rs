//! The images that a Dockerfile builds on, so that one sees when they have moved.
//!
//! Only what `FROM` and `COPY --from` name in so many words, with ARGs filled in. What is not seen here is missed
//! when it moves, and no worse.

use std::collections::{BTreeMap, BTreeSet};

/// Names of the images, without `scratch` and without the Dockerfile's own stages.
pub fn of(dockerfile: &str, build_args: &[String]) -> BTreeSet<String> {
    let mut args: BTreeMap<&str, &str> = BTreeMap::new();
    let given: BTreeMap<&str, &str> = build_args.iter().filter_map(|pair| pair.split_once('=')).collect();
    let mut stages: BTreeSet<String> = BTreeSet::from(["scratch".to_owned()]);
    let mut bases = BTreeSet::new();
    let mut add = |name: &str, stages: &BTreeSet<String>, args: &BTreeMap<&str, &str>| {
        let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
        let name = fill_in(name, args);
        if let Some(name) = name.filter(|name| !is_number && !stages.contains(&name.to_lowercase())) {
            bases.insert(name);
        }
    };
    let joined = dockerfile.replace("\\\n", " ");
    for line in joined.lines() {
        let mut words = line.split_whitespace();
        let instruction = words.next().unwrap_or_default().to_ascii_uppercase();
        let (flags, words): (Vec<&str>, Vec<&str>) = words.partition(|word| word.starts_with("--"));
        match (instruction.as_str(), &words[..]) {
            ("ARG", pairs) => {
                for pair in pairs {
                    let (name, default) = pair.split_once('=').unwrap_or((pair, ""));
                    args.insert(name, given.get(name).copied().unwrap_or(default.trim_matches('"')));
                }
            }
            ("FROM", [name, rest @ ..]) => {
                add(name, &stages, &args);
                if let [word, stage] = rest
                    && word.eq_ignore_ascii_case("as")
                {
                    stages.insert(stage.to_lowercase());
                }
            }
            ("COPY", _) => {
                flags
                    .iter()
                    .filter_map(|flag| flag.strip_prefix("--from="))
                    .for_each(|name| add(name, &stages, &args));
            }
            _ => {}
        }
    }
    bases
}

/// No image has a longer name (characters): the OCI distribution's 255, a tag and a digest.
const NAME_LIMIT: usize = 1024;

/// Puts values in place of `$NAME` and `${NAME}`; `None` where one is not known, or
/// where they are too long for a name.
fn fill_in(text: &str, args: &BTreeMap<&str, &str>) -> Option<String> {
    let mut parts = text.split('$');
    let mut filled = parts.next()?.to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
        let (name, rest) = match part.strip_prefix('{') {
            Some(braced) => braced.split_once('}')?,
            None => part.split_at(end),
        };
        filled += args.get(name)?;
        filled += rest;
        // Values of values would grow without end.
        if filled.len() > NAME_LIMIT {
            return None;
        }
    }
    Some(filled).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    fn of(dockerfile: &str, build_args: &[&str]) -> Vec<String> {
        let build_args: Vec<String> = build_args.iter().map(|&pair| pair.to_owned()).collect();
        super::of(dockerfile, &build_args).into_iter().collect()
    }

    #[test]
    fn bases_are_images_and_not_stages() {
        let dockerfile = "# FROM comment\nfrom --platform=linux/amd64 golang:1.22 AS Build\nFROM \\\n  debian\n\
             COPY --from=build /x /x\nCOPY --from=0 /y /y\nCOPY --from=busybox:1 --chown=1 /z /z\nFROM build\nFROM scratch";
        assert_eq!(of(dockerfile, &[]), ["busybox:1", "debian", "golang:1.22"]);
    }

    #[test]
    fn arguments_are_filled_in() {
        let dockerfile = "ARG TAG=\"12\" BASE\nFROM $BASE:${TAG}-slim\nFROM x:$UNKNOWN\nFROM ${TAG:-13}";
        assert_eq!(of(dockerfile, &["BASE=debian"]), ["debian:12-slim"]);
        assert_eq!(of(dockerfile, &["BASE=ubuntu", "TAG=24"]), ["ubuntu:24-slim"]);
    }

    #[test]
    fn a_name_that_grows_without_end_is_none() {
        let long = format!("ARG A={}\nFROM {}", "x".repeat(1000), "$A".repeat(1 << 20));
        assert!(of(&long, &[]).is_empty());
    }
}
