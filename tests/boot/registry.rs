//! From a registry straight to a machine.

use crate::support::Scratch;
use crate::support::registry::{Registry, skopeo};
use crate::world::{busybox_image, xtask};

/// `boot` takes the options of `image` that say how a disk is made: without one of them this registry is not trusted,
/// with another the disk has another size.
#[test]
fn an_image_of_a_registry_boots_as_it_is_told_to_be_made() {
    let scratch = Scratch::new();
    let rootfs = busybox_image(&scratch, "true");
    let layout = scratch.path().join("layout");
    let umoci = |words: &[&str]| duct::cmd("umoci", words).stdout_null().stderr_null().run().unwrap();
    umoci(&["init", "--layout", layout.as_str()]);
    let tagged = format!("{layout}:v1");
    umoci(&["new", "--image", &tagged]);
    umoci(&["raw", "add-layer", "--image", &tagged, rootfs.as_str()]);
    umoci(&["config", "--image", &tagged, "--config.entrypoint", "/busybox", "--architecture", "amd64"]);
    let registry = Registry::with_tls(scratch.path(), "");
    let image = format!("docker://{}/team/box:1", registry.host);
    skopeo(&["--dest-tls-verify=false", &format!("oci:{tagged}"), &image]);

    let boot = |options: &[&str]| {
        let words = [&["boot", &image][..], options, &["--", "df", "-m", "/"]].concat();
        let output = xtask(&words).output().unwrap();
        (output.status.code(), crate::support::texts(&output))
    };
    let (code, (_, said)) = boot(&[]);
    assert!(
        code == Some(125) && said.contains("certificate") && said.contains("--tls-verify=false"),
        "{said}"
    );
    let (code, (table, said)) = boot(&["--tls-verify=false", "--size", "100M"]);
    assert_eq!(code, Some(0), "{said}");
    let mebibytes: u32 = table.lines().last().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((80..=100).contains(&mebibytes), "{table}");
}
