use super::*;

fn placed(source: &str, is_directory: bool, target: &str, there: There) -> Result<(String, String), String> {
    place(Path::new(source), is_directory, Path::new(target), there)
        .map(|place| {
            (place.directory.display().to_string(), String::from_utf8_lossy(&place.name).into_owned())
        })
        .map_err(|error| error.to_string())
}

#[test]
fn dockers_rules_for_where_a_copy_goes() {
    let to = |directory: &str, name: &str| Ok((directory.to_owned(), name.to_owned()));
    let (nothing, directory, other) = (There::Nothing, There::Directory, There::Other);
    for (source, is_directory, target, there, expected) in [
        ("a/file", false, "/srv", directory, to("/srv", "file")),
        ("a/file", false, "/srv/new", nothing, to("/srv", "new")),
        ("a/file", false, "new", nothing, to(".", "new")),
        ("a/file", false, "/srv/old", other, to("/srv", "old")),
        ("a/file", false, "/new", nothing, to("/", "new")),
        ("tree", true, "/srv", directory, to("/srv", "tree")),
        ("tree/", true, "/srv", directory, to("/srv", "tree")),
        ("tree/.", true, "/srv", directory, to("/srv", ".")),
        (".", true, "/srv", directory, to("/srv", ".")),
        ("/", true, "/srv", directory, to("/srv", ".")),
        ("tree", true, "/srv/new", nothing, to("/srv", "new")),
        ("tree/.", true, "/srv/new/", nothing, to("/srv", "new")),
    ] {
        assert_eq!(placed(source, is_directory, target, there), expected, "{source} to {target}");
    }
    for (is_directory, target, there, complaint) in [
        (false, "/new/", nothing, "the directory `/new/` does not exist"),
        (true, "/file", other, "`source` is a directory and cannot replace the file `/file`"),
        (false, "/file/", other, "`/file/` is not a directory"),
        (true, "/srv/..", nothing, "`/srv/..` does not exist"),
    ] {
        assert_eq!(placed("source", is_directory, target, there), Err(complaint.to_owned()));
    }
}

#[test]
fn a_stream_ends_with_its_archive() {
    let folder = tempfile::tempdir().unwrap();
    let archive = crate::hostile_tar::archive(&[crate::hostile_tar::file("asked", b"x")]);
    let rules = Rules::Foreign { name: b"asked".into(), keep_all: false };
    let after = |padding: usize| {
        let (reader, mut writer) = io::pipe().unwrap();
        let bytes = [archive.clone(), vec![0; padding]].concat();
        let writing = std::thread::spawn(move || writer.write_all(&bytes).is_ok());
        let unpacked = unpack(reader, folder.path(), &rules).map_err(|error| error.to_string());
        (unpacked, writing.join().unwrap())
    };
    assert_eq!(after(0), (Ok(()), true));
    // GNU tar's usual record, and a large one.
    assert_eq!(after(20 * 512), (Ok(()), true));
    assert_eq!(after(512 * 1024), (Ok(()), true));
    let expected = "the stream goes on after the archive's end".to_owned();
    assert_eq!(after(4 << 20), (Err(expected), false));
}

#[test]
fn an_enemy_s_complaints_are_few() {
    let mut left_out = LeftOut::default();
    (0..1_000_000).for_each(|number| left_out.take(number.to_string()));
    assert_eq!((left_out.named.len(), left_out.others), (10, 999_990));
    assert_eq!(harmless("a\n\x1b[2Jb\r\n\tc"), "a\n\\u{1b}[2Jb\n\\tc");
}

#[test]
fn a_machine_is_told_from_a_path() {
    let split = |word: &'static str| {
        split_machine(OsStr::new(word)).map(|(name, path)| (name, path.to_str().unwrap()))
    };
    assert_eq!(split("web:/etc"), Some(("web", "/etc")));
    assert_eq!(split("web:a:b"), Some(("web", "a:b")));
    for path in ["/etc", "./a:b", "a/b:c", "-", "..:x", ":x", "plain"] {
        assert_eq!(split(path), None, "{path}");
    }
}
