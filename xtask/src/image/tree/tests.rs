use super::*;

#[test]
fn names_come_and_go() {
    let mut tree = Tree::default();
    let file = |tree: &mut Tree| {
        let content = Content { layer: 0, offset: 512, size: 3, sparse: None };
        tree.add(Kind::File(content), IMPLIED, Xattrs::new()).unwrap()
    };
    let folder = tree.add(Kind::Directory, IMPLIED, Xattrs::new()).unwrap();
    let slot = |inode, layer| Slot { inode, layer };
    tree.link(ROOT, b"folder", slot(folder, 0)).unwrap();
    for name in [&b"b"[..], b"a", b"c"] {
        let inode = file(&mut tree);
        tree.link(folder, name, slot(inode, 0)).unwrap();
    }
    let names = |tree: &Tree| tree.entries(folder).map(|(name, _)| name.to_vec()).collect::<Vec<_>>();
    assert_eq!(names(&tree), [b"b", b"a", b"c"]);
    tree.unlink(folder, b"c");
    tree.unlink(folder, b"c");
    let again = file(&mut tree);
    tree.link(folder, b"b", slot(again, 1)).unwrap();
    tree.link(folder, b"c", slot(again, 1)).unwrap();
    assert_eq!(names(&tree), [b"b", b"a", b"c"]);
    assert_eq!(tree.get(b"/folder/c"), Some(again));
    assert_eq!(tree.lookup(folder, b"b"), Some(slot(again, 1)));
    assert_eq!(tree.lookup(ROOT, b"b"), None);
    assert_eq!((tree.parent(folder), tree.parent(ROOT)), (ROOT, ROOT));
    assert!(tree.link(again, b"below", slot(folder, 0)).is_err());
}

#[test]
fn names_that_are_gone_are_gone_over_once() {
    let mut tree = Tree::default();
    let inode = tree.add(Kind::Symlink(b"x"), IMPLIED, Xattrs::new()).unwrap();
    let add = |tree: &mut Tree, name: u32, layer| {
        tree.link(ROOT, &name.to_le_bytes(), Slot { inode, layer }).unwrap();
    };
    (0..100).for_each(|name| add(&mut tree, name, name % 2));
    tree.retain(ROOT, |slot| slot.layer == 1);
    assert_eq!((tree.visited(), tree.entries(ROOT).count()), (100, 50));
    tree.retain(ROOT, |slot| slot.layer == 1);
    assert_eq!((tree.visited(), tree.entries(ROOT).count()), (150, 50));
    tree.retain(ROOT, |_| false);
    tree.retain(ROOT, |_| true);
    assert_eq!((tree.visited(), tree.entries(ROOT).count()), (200, 0));
    // What comes afterwards is found, first and last.
    add(&mut tree, 7, 2);
    add(&mut tree, 8, 2);
    assert_eq!(tree.entries(ROOT).map(|(name, _)| name[0]).collect::<Vec<_>>(), [7, 8]);
    assert_eq!(tree.lookup(ROOT, &1_u32.to_le_bytes()), None);
}

#[test]
fn a_tree_has_its_limits() {
    assert_eq!(within(5, 5, "files").unwrap(), 5);
    let said = within(6, 5, "files").unwrap_err().to_string();
    assert_eq!(said, "the image has more than 5 files, which is refused");
    let mut tree = Tree::default();
    let segments: std::sync::Arc<[_]> =
        (0..100_000).map(|at| crate::image::layer::Segment { offset: 2 * at, length: 1 }).collect();
    let content = |size| Content { layer: 0, offset: 0, size, sparse: Some(segments.clone()) };
    for number in 0..160 {
        tree.add(Kind::File(content(number)), IMPLIED, Xattrs::new()).unwrap();
    }
    let said = tree.add(Kind::File(content(0)), IMPLIED, Xattrs::new()).unwrap_err().to_string();
    assert_eq!(said, "the image has more than 16000000 parts of sparse files, which is refused");
    // The same attributes again cost nothing.
    let with = |number: u32| -> Xattrs {
        vec![("user.x".into(), [&number.to_le_bytes()[..], &[0; 65_526]].concat().into())]
    };
    let mut last = Ok(ROOT);
    for number in 0..4200 {
        last = tree.add(Kind::Directory, IMPLIED, with(number));
        if last.is_err() {
            break;
        }
        tree.add(Kind::Directory, IMPLIED, with(number)).unwrap();
    }
    let said = last.unwrap_err().to_string();
    assert_eq!(said, "the image has more than 268435456 bytes of attributes, which is refused");
}

/// What the bound on memory rests on.
#[test]
fn a_file_is_small() {
    assert_eq!(size_of::<Record>(), 48);
    assert_eq!(size_of::<Entry>(), 20);
}
