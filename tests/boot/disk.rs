//! The disk that this workbench writes, in a kernel's hands.

use crate::support::{Scratch, texts};
use crate::world::{busybox_image, kept_disk, xtask};

/// A folder whose index has two levels, a file with holes, and an inode table of which most was never written.
#[test]
fn a_kernel_finds_every_name_and_leaves_a_clean_disk_after_writing() {
    let scratch = Scratch::new();
    let make = "
        mkdir many; printf start >holes; printf end | dd of=holes bs=1 seek=50000000 conv=notrunc status=none
        n=0; name=$(printf '%0240d' 0); while [ $n -lt 8500 ]; do : >many/$name$n; n=$((n + 1)); done";
    let archive = busybox_image(&scratch, make);
    let source = format!("rootfs:{archive}");
    let name = format!("disk-{}", std::process::id());
    // Names are looked for one by one, which goes through the index; listing does not.
    let script = "
        PATH=; b=/busybox; cd /many; name=$($b printf '%0240d' 0)
        found=0; n=0; while [ $n -lt 8500 ]; do [ -e $name$n ] && found=$((found + 1)); n=$((n + 1)); done
        echo found $found, listed $($b ls | $b wc -l)
        $b tail -c 3 /holes; echo; $b wc -c </holes
        while [ $n -lt 11000 ]; do : >new-$name$n; n=$((n + 1)); done; $b rm -f ${name}8* $name
        echo then $($b ls | $b wc -l); $b dd if=/dev/zero of=/written bs=1M count=150 2>&1 | $b head -1
        $b mkdir -p /a/b/c && $b ln /holes /a/b/c/linked && $b chown 70000:70000 /written && echo done";
    let words = ["boot", "--name", &name, "--persist", "--rm", &source, "--", "/busybox", "sh", "-c", script];
    let output = xtask(&words).output().unwrap();
    let (said, talk) = texts(&output);
    let expected = "found 8500, listed 8500\nend\n50000003\nthen 10389\n150+0 records in\ndone\n";
    assert_eq!((said.as_str(), output.status.code()), (expected, Some(0)), "{talk}");
    kept_disk(&name);
}
