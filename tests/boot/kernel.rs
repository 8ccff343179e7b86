//! The kernel's real source: fallback, unpacking and Kconfig's verdict. What is compiled from it, every other test here
//! boots.

use crate::support::{Scratch, texts};

#[test]
fn out_of_reach_of_kernel_org_debians_source_is_configured() {
    let scratch = Scratch::new();
    let arguments = ["kernel", "--set", "CONFIG_MISC_FILESYSTEMS=n", "--set", "CONFIG_BTRFS_FSS=y"];
    // The discard port of loopback, where nobody listens.
    let mut command = scratch.xtask(&arguments);
    let output = command.env("MICROVM_KERNEL_MIRROR", "http://127.0.0.1:9").output().unwrap();
    let talk = texts(&output).1;
    assert_eq!(output.status.code(), Some(125));
    assert!(talk.contains("using Debian's kernel source"), "{talk}");
    if talk.contains("missing on this host: the kernel's source") {
        // Where kernel.org can be reached the package may never have been needed.
        assert!(talk.contains("apt-get install --no-install-recommends linux-source"), "{talk}");
        return;
    }
    assert!(talk.contains("2 kernel config options did not take"), "{talk}");
    let dropped = "CONFIG_EROFS_FS (kernel/microvm/30-filesystems.config:";
    assert!(talk.contains(dropped), "{talk}");
    assert!(talk.contains("wanted y, got n; depends on MISC_FILESYSTEMS && BLOCK"), "{talk}");
    assert!(talk.contains("did you mean `CONFIG_BTRFS_FS`?"), "{talk}");
    let kernels = scratch.cache().join("kernels");
    assert!(!kernels.join("by-request").exists(), "a kernel looks finished in {kernels}");
}
