//! The fuzz targets' bodies on random input and on archives with a few bytes changed, for a bounded number of cases.

use proptest::prelude::*;
use tar_core::EntryType;
use xtask::image::fuzz;

use crate::layers::{Tar, With, documents};

fn seed() -> Vec<u8> {
    let with = With { xattrs: vec![("user.a", b"1".to_vec())], mtime: "-1.5", ..With::default() };
    Tar::new()
        .folder("./")
        .folder("a/")
        .entry(EntryType::Regular, "a/b", b"content", &with)
        .link("link", "a")
        .hardlink("c", "a/b")
        .entry(EntryType::Char, "null", b"", &With { device: (1, 3), ..With::default() })
        .entry(EntryType::Regular, "a/.wh..wh..opq", b"", &With::default())
        .file("link/through", "1")
        .file(".wh.c", "")
        .bytes()
}

/// Offsets and bytes to put there.
fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12)
}

fn changed(mut bytes: Vec<u8>, changes: &[(prop::sample::Index, u8)]) -> Vec<u8> {
    for (index, byte) in changes {
        let at = index.index(bytes.len());
        bytes[at] = *byte;
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers(changes in changes(), length in any::<prop::sample::Index>()) {
        let mut bytes = changed(seed(), &changes);
        if changes.len() > 8 {
            bytes.truncate(length.index(bytes.len()));
        }
        fuzz::layer(&bytes);
    }

    #[test]
    fn references(text in "[a-zA-Z0-9:/@._\\-\\[\\] é]{0,80}", bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        fuzz::reference(text.as_bytes());
        fuzz::reference(&bytes);
    }

    #[test]
    fn manifests(changes in changes(), bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let documents = documents(&[b"layer".to_vec()]);
        fuzz::manifest(&changed(documents.manifest, &changes));
        fuzz::manifest(&changed(documents.blobs[1].1.clone(), &changes));
        fuzz::manifest(&bytes);
    }
}

#[test]
fn the_seed_is_a_good_archive() {
    fuzz::layer(&seed());
}
