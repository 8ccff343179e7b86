//! What somebody may have meant by a name that is not there.

use camino::Utf8Path;

/// Names less alike than this are not offered (1.0 is the same).
const ALIKE: f64 = 0.7;

/// Why a path cannot be opened: that it does not exist, with the nearest name beside it, or that opening it failed.
pub fn describe(path: &Utf8Path) -> String {
    if path.symlink_metadata().is_ok() {
        return format!("failed to open `{path}`");
    }
    match nearest_path(path) {
        Some(near) => format!("`{path}` does not exist; is it `{near}`?"),
        None => format!("`{path}` does not exist"),
    }
}

/// The existing path that is most like this one: same parent, other last name.
fn nearest_path(path: &Utf8Path) -> Option<String> {
    let parent = path.parent()?;
    let listed = if parent.as_str().is_empty() { Utf8Path::new(".") } else { parent };
    let names = listed.read_dir_utf8().ok()?.flatten().map(|entry| entry.file_name().to_owned());
    nearest(path.file_name()?, names).map(|name| parent.join(name).into_string())
}

/// The candidate that is most like a word, if any is like it at all.
pub fn nearest(word: &str, candidates: impl IntoIterator<Item = String>) -> Option<String> {
    let likeness = |name: &String| strsim::jaro_winkler(&name.to_lowercase(), &word.to_lowercase());
    candidates
        .into_iter()
        .map(|name| (likeness(&name), name))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_offered() {
        let names = || ["hello", "nginx", "redis"].map(str::to_owned);
        assert_eq!(nearest("ngnix", names()).as_deref(), Some("nginx"));
        assert_eq!(nearest("helo", names()).as_deref(), Some("hello"));
        assert_eq!(nearest("zzz", names()), None);
    }

    #[test]
    fn a_missing_path_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        std::fs::write(folder.join("Dockerfile"), "").unwrap();
        let missing = folder.join("Dockerfil");
        assert_eq!(describe(&missing), format!("`{missing}` does not exist; is it `{folder}/Dockerfile`?"));
    }
}
