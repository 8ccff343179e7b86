//! What an enemy leaves in a folder that is shared with it.

use std::fs;

use crate::world::{Enemy, described};

#[test]
fn a_writable_share_is_all_that_is_written_to() {
    let enemy = Enemy::new();
    let root = enemy.scratch.path().join("host");
    let share = root.join("share");
    for folder in ["share", "outside"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("outside/secret"), "secret").unwrap();
    let before = described(&root, &share);
    enemy.boot(&["-v", &format!("{share}:/data")], &["share"]).wait().is(0, "");
    assert_eq!(described(&root, &share), before);
    // It was there, and did what it could.
    assert!(share.join("up").is_symlink());
}
