use std::io::Write as _;

use super::*;
use crate::hostile_tar::{self as tar, archive, directory, extended, file, hard_link, link, record};
use crate::image::layer::Special;

fn layer(entries: &[Vec<u8>]) -> Layer {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&archive(entries)).unwrap();
    Layer::whole(file, "`layer`").unwrap()
}

/// Lays layers over each other, each given as its entries.
fn laid(layers: &[&[Vec<u8>]]) -> Tree {
    let layers: Vec<Layer> = layers.iter().map(|entries| layer(entries)).collect();
    flatten(&layers, Whiteouts::Apply).unwrap()
}

fn refusal(layers: &[&[Vec<u8>]]) -> String {
    let layers: Vec<Layer> = layers.iter().map(|entries| layer(entries)).collect();
    format!("{:#}", flatten(&layers, Whiteouts::Apply).unwrap_err())
}

/// All paths, in order, directories with a slash at the end.
fn paths(tree: &Tree) -> Vec<String> {
    fn add(tree: &Tree, directory: InodeId, before: &str, to: &mut Vec<String>) {
        for (name, slot) in tree.sorted_entries(directory) {
            let path = format!("{before}{}", String::from_utf8_lossy(name));
            if tree.is_directory(slot.inode) {
                to.push(format!("{path}/"));
                add(tree, slot.inode, &format!("{path}/"), to);
            } else {
                to.push(path);
            }
        }
    }
    let mut all = Vec::new();
    add(tree, ROOT, "", &mut all);
    all
}

fn size(tree: &Tree, path: &str) -> u64 {
    match tree.inode(tree.get(path.as_bytes()).unwrap()).kind {
        Kind::File(content) => content.size,
        other => panic!("{other:?}"),
    }
}

#[test]
fn paths_are_cleaned() {
    let of = |path: &[u8]| {
        components(path)
            .map(|names| {
                names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>()
            })
            .map_err(|error| error.to_string())
    };
    for (path, expected) in [
        (&b""[..], &[][..]),
        (b"/", &[]),
        (b"./", &[]),
        (b"a", &["a"]),
        (b"/a//b/./c/", &["a", "b", "c"]),
        (b"a/../b", &["b"]),
        (b"a/b/../../c", &["c"]),
        (b"a/..", &[]),
        (b"...", &["..."]),
    ] {
        assert_eq!(of(path).unwrap(), expected, "{}", path.escape_ascii());
    }
    for path in [&b".."[..], b"/..", b"a/../..", b"../a"] {
        assert_eq!(of(path), Err("its path leaves the image's root".into()));
    }
    assert_eq!(of(b"a\0"), Err("its path holds a zero byte".into()));
    assert_eq!(of(&[b'n'; 256]), Err("a name of 256 bytes; Linux allows 255".into()));
    assert!(of(&[b'n'; 255]).is_ok());
}

#[test]
fn later_entries_take_the_place_of_earlier_ones() {
    let tree = laid(&[
        &[directory("d/", 0o755), file("d/a", b"1"), file("f", b"1")],
        &[directory("d/", 0o700), file("f", b"22"), file("d/a/", b"")],
        &[file("d", b"333")],
        &[directory("d/", 0o711)],
    ]);
    assert_eq!(paths(&tree), ["d/", "f"]);
    assert_eq!(size(&tree, "f"), 2);
    assert_eq!(tree.inode(tree.get(b"d").unwrap()).metadata.mode, 0o711);
    // The same directory, with other metadata, keeps what is in it.
    let tree = laid(&[&[directory("d/", 0o755), file("d/a", b"1")], &[directory("d", 0o700)]]);
    assert_eq!(paths(&tree), ["d/", "d/a"]);
    assert_eq!(tree.inode(tree.get(b"d").unwrap()).metadata.mode, 0o700);
    // The root itself.
    let tree = laid(&[&[directory("./", 0o711), tar::Header::new(b'6', "p").bytes()]]);
    assert_eq!(tree.inode(ROOT).metadata.mode, 0o711);
    assert_eq!(tree.inode(tree.get(b"p").unwrap()).kind, Kind::Special(Special::Fifo));
    assert!(refusal(&[&[file("./", b"")], &[link("/", "x")]]).contains("the root can only be a directory"));
}

#[test]
fn missing_directories_are_made() {
    let tree = laid(&[&[file("a/b/c", b"1")]]);
    assert_eq!(paths(&tree), ["a/", "a/b/", "a/b/c"]);
    assert_eq!(tree.inode(tree.get(b"a/b").unwrap()).metadata, IMPLIED);
    assert_eq!(tree.parent(tree.get(b"a/b").unwrap()), tree.get(b"a").unwrap());
    assert!(refusal(&[&[file("a", b"1"), file("a/b", b"1")]]).contains("its parent `a` is not a directory"));
}

#[test]
fn links_on_the_way_stay_inside() {
    let tree = laid(&[&[
        directory("real/", 0o755),
        link("relative", "real"),
        link("absolute", "/real"),
        link("up", "../../../real"),
        link("real/back", ".././real/."),
        file("relative/a", b"1"),
        file("absolute/b", b"1"),
        file("up/c", b"1"),
        file("real/back/d", b"1"),
        link("nowhere", "new/place"),
        file("nowhere/e", b"1"),
    ]]);
    let expected = [
        "absolute",
        "new/",
        "new/place/",
        "new/place/e",
        "nowhere",
        "real/",
        "real/a",
        "real/b",
        "real/back",
        "real/c",
        "real/d",
        "relative",
        "up",
    ];
    assert_eq!(paths(&tree), expected);
    // 40 links are followed and no more.
    let chain = |count: usize| -> Vec<Vec<u8>> {
        let links = (0..count).map(|n| link(&format!("l{n}"), &format!("l{}", n + 1)));
        links.chain([directory(&format!("l{count}/"), 0o755), file("l0/x", b"")]).collect()
    };
    assert!(paths(&laid(&[&chain(40)])).contains(&"l40/x".to_owned()));
    assert!(refusal(&[&chain(41)]).contains("more than 40 links in its path"));
    assert!(refusal(&[&[link("l", "l"), file("l/x", b"")]]).contains("more than 40 links"));
}

#[test]
fn hard_links_are_names_of_one_inode() {
    let tree = laid(&[
        &[file("a", b"123"), directory("d/", 0o755), link("l", "d"), link("s", "nowhere")],
        &[
            hard_link("b", "a"),
            hard_link("c", "/./b"),
            hard_link("l/e", "d/../a"),
            hard_link("t", "s"),
            file("a", b"4"),
        ],
    ]);
    let get = |path: &[u8]| tree.get(path).unwrap();
    assert_eq!([get(b"c"), get(b"d/e")], [get(b"b"), get(b"b")]);
    assert_eq!((size(&tree, "b"), size(&tree, "a")), (3, 1));
    assert_eq!(get(b"t"), get(b"s"), "a link to a link is one to the link itself");
    for (target, expected) in [
        ("missing", "its target `missing` does not exist"),
        ("a/below", "its target `a/below` does not exist"),
        ("missing/below", "its target `missing/below` does not exist"),
        ("d", "its target `d` is a directory"),
        ("/", "its target `/` is a directory"),
        ("../a", "failed to follow its target `../a`: its path leaves the image's root"),
    ] {
        let said = refusal(&[&[file("a", b""), directory("d/", 0o755), hard_link("x", target)]]);
        assert!(said.ends_with(expected), "{said}");
    }
}

#[test]
fn whiteouts_hide_lower_layers_alone() {
    let lower: &[Vec<u8>] = &[file("d/a", b"1"), file("d/b", b"1"), file("d/e/f", b"1"), file("x", b"1")];
    let after = |upper: &[Vec<u8>]| paths(&laid(&[lower, upper]));
    assert_eq!(after(&[file("d/.wh.a", b"")]), ["d/", "d/b", "d/e/", "d/e/f", "x"]);
    assert_eq!(after(&[file(".wh.d", b"")]), ["x"]);
    assert_eq!(after(&[file("d/e/.wh.f", b"")]), ["d/", "d/a", "d/b", "d/e/", "x"]);
    assert_eq!(after(&[file("d/.wh..wh..opq", b"")]), ["d/", "x"]);
    assert_eq!(after(&[file(".wh..wh..opq", b"")]), [""; 0]);
    // What the same layer brings stays, whatever the order.
    for order in [[0, 1], [1, 0]] {
        let opaque = [file("d/.wh..wh..opq", b""), file("d/new", b"2")];
        assert_eq!(after(&order.map(|at| opaque[at].clone())), ["d/", "d/new", "x"]);
        let single = [file(".wh.d", b""), file("d/new", b"2")];
        assert_eq!(after(&order.map(|at| single[at].clone())), ["d/", "d/new", "x"]);
        let same = [file("d/.wh.a", b""), file("d/a", b"22")];
        let tree = laid(&[lower, &order.map(|at| same[at].clone())]);
        assert_eq!(size(&tree, "d/a"), 2);
        let deep = [file("d/.wh..wh..opq", b""), file("d/e/new", b"2")];
        assert_eq!(after(&order.map(|at| deep[at].clone())), ["d/", "d/e/", "d/e/new", "x"]);
    }
    // Twice is once; a folder in one that is hidden, and the other way round.
    let opaque = || file("d/.wh..wh..opq", b"");
    assert_eq!(after(&[opaque(), file("d/new", b""), opaque()]), ["d/", "d/new", "x"]);
    assert_eq!(after(&[file("d/e/.wh..wh..opq", b""), opaque()]), ["d/", "x"]);
    assert_eq!(
        after(&[opaque(), file("d/e/new", b""), file("d/e/.wh..wh..opq", b"")]),
        ["d/", "d/e/", "d/e/new", "x"]
    );
    // The next layer's whiteout is for this one too.
    let three = laid(&[lower, &[opaque(), file("d/new", b"")], &[opaque(), file("d/third", b"")]]);
    assert_eq!(paths(&three), ["d/", "d/third", "x"]);
    // Through a link, of nothing, and aufs's own.
    assert_eq!(
        paths(&laid(&[lower, &[link("l", "d"), file("l/.wh.a", b"")]])),
        ["d/", "d/b", "d/e/", "d/e/f", "l", "x"]
    );
    let all = ["d/", "d/a", "d/b", "d/e/", "d/e/f", "x"];
    for nothing in
        [".wh.missing", "missing/.wh.a", "x/.wh.a", ".wh..wh.plnk", ".wh..wh.aufs", "missing/.wh..wh..opq"]
    {
        assert_eq!(after(&[file(nothing, b"")]), all, "{nothing}");
    }
    for (name, expected) in [
        (".wh.", "a whiteout of nothing"),
        (".wh..", "a whiteout of nothing"),
        ("d/.wh...", "a whiteout of nothing"),
    ] {
        assert!(refusal(&[lower, &[file(name, b"")]]).ends_with(expected), "{name}");
    }
    // In a plain archive they are names like any other.
    let plain = flatten(&[layer(&[file("d/.wh.a", b""), file(".wh.", b"")])], Whiteouts::Ignore).unwrap();
    assert_eq!(paths(&plain), [".wh.", "d/", "d/.wh.a"]);
}

#[test]
fn of_two_values_of_an_attribute_the_later_counts() {
    let xattr = |name: &str, value: &[u8]| (name.into(), value.into());
    let ordered = in_order(vec![xattr("b", b"1"), xattr("a", b"2"), xattr("b", b"3")]);
    assert_eq!(ordered, [xattr("a", b"2"), xattr("b", b"3")]);
}

#[test]
fn images_without_measure_are_refused() {
    let layers: Vec<Layer> = vec![layer(&[]); MAX_LAYERS + 1];
    let said = flatten(&layers, Whiteouts::Apply).unwrap_err().to_string();
    assert_eq!(said, "the image has 1001 layers; more than 1000 are refused");
    assert!(flatten(&layers[1..], Whiteouts::Apply).is_ok());
    // Each path is as long as paths may be, and each makes 2,000 directories.
    let long = |number: u32| {
        let path = format!("{number}/{}", "d/".repeat(2000));
        [extended(&[record("path", path.as_bytes())]), directory("x", 0o755)].concat()
    };
    let entries: Vec<Vec<u8>> = (0..530).map(long).collect();
    let said = refusal(&[&entries]);
    assert!(said.ends_with("have more than 100 names on average, links followed; that is refused"), "{said}");
    assert!(flatten(&[layer(&entries[..100])], Whiteouts::Apply).is_ok());
    // Links that lead to links that lead down: few bytes, many names.
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for number in 0..30 {
        let target = format!(
            "{}{}",
            if number > 0 { format!("l{}/", number - 1) } else { String::new() },
            "d/".repeat(1000)
        );
        entries.push(
            [extended(&[record("linkpath", target.as_bytes())]), link(&format!("l{number}"), "x")].concat(),
        );
    }
    entries.push(file("l29/x", b""));
    let said = refusal(&[&entries]);
    assert!(said.ends_with("directories more than 2048 deep"), "{said}");
}

/// Work grows with the number of entries, and not with its square: each doubling of the input at most triples the names that
/// are gone over.
#[test]
fn whiteouts_cost_what_they_hide() {
    // Opaque markers without number in one layer, over a directory with as many files.
    let entries = |count: u32| -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let lower = (0..count).map(|n| file(&format!("d/{n}"), b"")).collect();
        let upper = (0..count)
            .flat_map(|n| {
                [file(&format!("d/new-{n}"), b""), file("d/.wh..wh..opq", b""), file(".wh..wh..opq", b"")]
            })
            .collect();
        (lower, upper)
    };
    let visits = |count: u32| {
        let (lower, upper) = entries(count);
        let mut tree = Tree::default();
        let mut work = Work::default();
        let layers = [layer(&lower), layer(&upper)];
        for (number, layer) in (0..).zip(&layers) {
            let mut applied =
                Applied { tree: &mut tree, work: &mut work, layer: number, is_upper_only: HashSet::new() };
            let mut entries = layer.entries(number);
            while let Some(Entry { path, kind, metadata, xattrs }) = entries.next_entry().unwrap() {
                applied.entry(&path, kind, metadata, xattrs, Whiteouts::Apply).unwrap();
            }
        }
        assert_eq!(tree.entries(tree.get(b"d").unwrap()).count(), count as usize);
        tree.visited()
    };
    let (few, many) = (visits(500), visits(2000));
    assert!(many <= 6 * few, "{few} and {many}");
}
