//! What an enemy answers where a copy of its files is asked for: archives that lead elsewhere.

use std::fs;

use tar_core::EntryType;

use crate::layers::{Tar, With};
use crate::world::{Enemy, described};

/// Archives that answer a request for `asked`; each tries to leave its place.
fn archives() -> Vec<(&'static str, Tar)> {
    let outside = "../../outside";
    let device = |kind, device| Tar::new().entry(kind, "asked", b"", &With { device, ..With::default() });
    let entry = |path: String| Tar::new().file(path, "x");
    vec![
        ("above", entry(format!("{outside}/file"))),
        ("above, through its own name", entry(format!("asked/../{outside}/file"))),
        ("an absolute name", entry("/tmp/hostile-absolute-name".into())),
        ("another name", entry("other".into())),
        ("no name", entry(String::new())),
        ("the folder itself", Tar::new().folder(".").file("./other", "x")),
        ("a link and what is behind it", Tar::new().link("asked", outside).file("asked/file", "x")),
        (
            "a link, a folder in its place",
            Tar::new().link("asked", outside).folder("asked").file("asked/file", "x"),
        ),
        ("a link in a folder", Tar::new().folder("asked").link("asked/a", outside).file("asked/a/file", "x")),
        (
            "a link to a link",
            Tar::new()
                .folder("asked")
                .link("asked/a", "b")
                .link("asked/b", outside)
                .file("asked/a/file", "x"),
        ),
        (
            "a hard link to the outside",
            Tar::new().hardlink("asked", format!("{outside}/secret")).file("asked", "x"),
        ),
        (
            "a hard link through a link",
            Tar::new()
                .folder("asked")
                .link("asked/a", outside)
                .hardlink("asked/b", "asked/a/secret")
                .file("asked/b", "x"),
        ),
        ("a name of 5,000 letters", entry("n".repeat(5000))),
        ("a path of 2,000 folders", entry("asked/".to_owned() + &"d/".repeat(2000) + "x")),
        ("a terminal's escapes", entry("asked/\x1b[2J\x1b]0;owned\x07".into())),
        ("a device", device(EntryType::Char, (1, 1))),
        ("a disk", device(EntryType::Block, (254, 0))),
    ]
}

#[test]
fn a_copy_writes_its_target_and_nothing_else() {
    for (name, archive) in archives() {
        let bytes = archive.bytes();
        let enemy = Enemy::with_disk(&bytes);
        let root = enemy.scratch.path().join("host");
        let target = root.join("target/asked");
        for folder in ["target", "outside"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("outside/secret"), "secret").unwrap();
        fs::write(root.join("target/neighbour"), "mine").unwrap();
        let before = described(&root, &target);

        enemy.detached(&["tar", &bytes.len().to_string(), "0"]);
        for asked in ["box:/asked", "box:/asked/"] {
            let done = enemy.task(&["cp", asked, target.as_str()]).wait();
            assert!(done.code.is_some(), "{name}: {}", done.stderr);
            done.is_harmless();
            assert_eq!(described(&root, &target), before, "{name}: {}", done.stderr);
            assert_eq!(fs::read_to_string(root.join("outside/secret")).unwrap(), "secret", "{name}");
            let absolute = std::path::Path::new("/tmp/hostile-absolute-name");
            assert!(!absolute.exists(), "{name}");
        }
        enemy.remove();
    }
}
