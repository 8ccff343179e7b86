//! A process's environment: what the boot's settings give, and what docker adds where they are silent. All pure.

/// The search path of an image that sets none, as docker has it.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The value of `name` in `NAME=value` pairs; the last one counts.
pub(crate) fn value<'a>(environment: &'a [String], name: &str) -> Option<&'a str> {
    environment.iter().rev().find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// `base` with the pairs of `over` in place of those of the same name, or after the others.
pub(crate) fn lay_over(base: &[String], over: &[String]) -> Vec<String> {
    let mut result: Vec<String> = base.to_vec();
    for pair in over {
        let name = pair.split('=').next().unwrap_or_default();
        match result.iter_mut().find(|old| old.split('=').next() == Some(name)) {
            Some(old) => old.clone_from(pair),
            None => result.push(pair.clone()),
        }
    }
    result
}

/// Adds what every process of a container has and these pairs lack.
pub(crate) fn complete(environment: &mut Vec<String>, home: &str, hostname: &str, terminal: bool) {
    let mut add = |name: &str, default: &str| {
        if value(environment, name).is_none() {
            environment.push(format!("{name}={default}"));
        }
    };
    add("PATH", DEFAULT_PATH);
    add("HOSTNAME", hostname);
    if terminal {
        add("TERM", "xterm");
    }
    add("HOME", home);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[&str]) -> Vec<String> {
        pairs.iter().map(|pair| pair.to_string()).collect()
    }

    #[test]
    fn later_pairs_replace_earlier_ones_in_place() {
        let base = pairs(&["A=1", "AB=2", "C"]);
        assert_eq!(lay_over(&base, &pairs(&["D=4", "A=x=y", "C="])), pairs(&["A=x=y", "AB=2", "C=", "D=4"]));
        assert_eq!(lay_over(&base, &[]), base);
    }

    #[test]
    fn only_what_is_missing_is_added() {
        let mut environment = pairs(&["HOME=/h", "PATHS=/x"]);
        complete(&mut environment, "/root", "microvm", false);
        let path = format!("PATH={DEFAULT_PATH}");
        assert_eq!(environment, pairs(&["HOME=/h", "PATHS=/x", &path, "HOSTNAME=microvm"]));

        let mut environment = pairs(&["PATH=", "TERM=dumb"]);
        complete(&mut environment, "/", "h", true);
        assert_eq!(environment, pairs(&["PATH=", "TERM=dumb", "HOSTNAME=h", "HOME=/"]));
    }
}
