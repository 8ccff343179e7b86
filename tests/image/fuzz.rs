//! The fuzz targets' bodies on random input and on archives with a few bytes changed, for a bounded number of cases.

use std::io::Write as _;

use camino::Utf8Path;
use proptest::prelude::*;
use xtask::disk::ext4::Plan;
use xtask::image::flatten::{Whiteouts, flatten};
use xtask::image::fuzz;
use xtask::image::layer::Layer;

use crate::layers::documents;
use crate::oracle::disk_of;
use crate::support::Scratch;
use crate::view;

/// The good archives that fuzzing begins with.
const SEEDS: [&[u8]; 3] = [
    include_bytes!("../../fuzz/seeds/layer/pax.tar"),
    include_bytes!("../../fuzz/seeds/layer/pax-sparse.tar"),
    include_bytes!("../../fuzz/seeds/layer/gnu-sparse.tar"),
];

/// The same for what a machine sends to `cp`.
const SENT: [&[u8]; 2] = [
    include_bytes!("../../fuzz/seeds/extraction/gnu.tar"),
    include_bytes!("../../fuzz/seeds/extraction/pax.tar"),
];

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
    fn layers(seed in prop::sample::select(&SEEDS), changes in changes(), length in any::<prop::sample::Index>()) {
        let mut bytes = changed(seed.to_vec(), &changes);
        if changes.len() > 8 {
            bytes.truncate(length.index(bytes.len()));
        }
        fuzz::layer(&bytes);
    }

    #[test]
    fn dockerfiles_and_what_they_ignore(text in "[a-c*?!/\\\\#\\[\\]^\n -]{0,40}", bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        fuzz::dockerignore(text.as_bytes());
        fuzz::dockerignore(&bytes);
        fuzz::dockerfile(text.as_bytes());
        fuzz::dockerfile(&[b"\x7fELF\x02\x01", &bytes[..]].concat());
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// As this user; a changed header may say anything of owners, modes and kinds.
    #[test]
    fn extractions(seed in prop::sample::select(&SENT), changes in changes()) {
        fuzz::extraction(&changed(seed.to_vec(), &changes));
    }

    /// What is not refused is a file system in which e2fsck finds nothing, whatever the archive says.
    #[test]
    fn disks_of_changed_archives(seed in prop::sample::select(&SEEDS), changes in changes()) {
        let bytes = fuzz::with_checksums(&changed(seed.to_vec(), &changes));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let layers = [Layer::whole(file, "the input").unwrap()];
        if let Ok(plan) = flatten(&layers, Whiteouts::Apply).and_then(Plan::new)
            && plan.minimum_size() <= 64 << 20
        {
            let disk = tempfile::NamedTempFile::new().unwrap();
            plan.write(&layers, disk.as_file(), plan.minimum_size(), |_| {}).unwrap();
            view::check(Utf8Path::from_path(disk.path()).unwrap());
        }
    }
}

#[test]
fn the_seeds_are_good_archives() {
    for seed in SENT {
        let target = Scratch::new();
        let rules = init::archive::Rules::Foreign { name: b"asked".into(), keep_all: false };
        init::archive::extract(seed, target.path().as_std_path(), &rules, &mut |_| {}).unwrap();
        assert!(target.path().join("asked/folder/file").is_file());
        fuzz::extraction(seed);
    }
    for seed in SEEDS {
        assert!(fuzz::with_checksums(seed) == seed, "its checksums are right as they are");
        fuzz::layer(seed);
        let scratch = Scratch::new();
        let tar = scratch.path().join("seed.tar");
        std::fs::write(&tar, seed).unwrap();
        view::of_disk(&disk_of(&scratch, &format!("rootfs:{tar}")));
    }
}
