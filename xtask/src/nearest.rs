//! What somebody may have meant by a name that is not there.

use camino::{Utf8Path, Utf8PathBuf};

/// Names less alike than this are not offered (1.0 is the same); one wrong letter of three gives 0.82.
const ALIKE: f64 = 0.8;

/// The candidate that is most like a word, if any is like it at all; of equals the first in the alphabet.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |name: &str| strsim::jaro_winkler(&name.to_lowercase(), &word.to_lowercase());
    candidates
        .into_iter()
        .map(|name| (likeness(name), name))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(a, name), (b, other)| a.total_cmp(b).then_with(|| other.cmp(name)))
        .map(|(_, name)| name)
}

/// The entry of the same folder whose name is most like that of a path which does not exist.
pub fn nearest_path(path: &Utf8Path) -> Option<Utf8PathBuf> {
    let folder = path.parent()?;
    let listed = if folder.as_str().is_empty() { Utf8Path::new(".") } else { folder };
    let names: Vec<String> =
        listed.read_dir_utf8().ok()?.flatten().map(|entry| entry.file_name().to_owned()).collect();
    nearest(path.file_name()?, names.iter().map(String::as_str)).map(|name| folder.join(name))
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_offered() {
        let names = ["hello", "nginx", "redis"];
        assert_eq!(nearest("ngnix", names), Some("nginx"));
        assert_eq!(nearest("helo", names), Some("hello"));
        assert_eq!(nearest("zzz", names), None);
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
