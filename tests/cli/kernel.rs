//! `kernel`: what is refused, and what a build leaves behind.
//!
//! Builds here are of a tree of a few lines, which stands where a kernel of 1.5 GiB would; `tests/boot` has the
//! real one.

use std::process::{Child, Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};

use crate::support::http::{Answer, Server};
use crate::support::{Scratch, texts, wait_until};

/// Understands what `kernel` asks of make. `COUNT` counts the compiles, `REFUSED` is an option that never takes.
const MAKEFILE: &str = r#"VERSION = 6
PATCHLEVEL = 99
SUBLEVEL = 1
EXTRAVERSION =
# As kbuild has it.
ifneq ($(words $(subst :, ,$(realpath $(dir $(lastword $(MAKEFILE_LIST)))))), 1)
$(error source directory cannot contain spaces or colons)
endif
ifneq ($(words $(subst :, ,$(O))), 1)
$(error output directory cannot contain spaces or colons)
endif
tinyconfig:
	@echo CONFIG_TINY=y > $(O)/.config
olddefconfig:
	@sed -i /CONFIG_REFUSED/d $(O)/.config
vmlinux:
	@echo '  CC      init/main.o'
	@echo compiled >> ../count
	@sh ../compile
	@cp $(O)/.config $(O)/vmlinux
bzImage: vmlinux
	@mkdir -p $(O)/arch/x86/boot
	@cp vmlinux.in $(O)/arch/x86/boot/bzImage
"#;

/// A tree that compiles by way of the shell script beside it.
fn tiny_kernel(scratch: &Scratch, compile: &str) -> Utf8PathBuf {
    scratch.write("linux/Makefile", MAKEFILE);
    scratch.write(
        "linux/Kconfig",
        "config WANTED\n\tbool \"x\"\nconfig REFUSED\n\tbool \"x\"\n\tdepends on BROKEN\n",
    );
    scratch.write("linux/vmlinux.in", "bzImage");
    scratch.write("compile", compile);
    scratch.write("config", "CONFIG_WANTED=y\n");
    scratch.path().join("linux")
}

fn compiles(scratch: &Scratch) -> usize {
    std::fs::read_to_string(scratch.path().join("count")).map_or(0, |text| text.lines().count())
}

fn build(scratch: &Scratch, more: &[&str]) -> Command {
    let mut arguments = vec!["kernel", "--source", "linux", "--config", "config"];
    arguments.extend(more);
    scratch.xtask(&arguments)
}

/// Kernels that look finished.
fn finished(scratch: &Scratch) -> Vec<Utf8PathBuf> {
    let entries = scratch.cache().join("kernels").read_dir_utf8().into_iter().flatten().flatten();
    entries.map(|entry| entry.into_path()).filter(|path| path.join("kernel.json").exists()).collect()
}

#[test]
fn help() {
    let scratch = Scratch::new();
    insta::assert_snapshot!(scratch.transcript(&mut scratch.xtask(&["kernel", "--help"])));
}

#[test]
fn bad_configs() {
    let scratch = Scratch::new();
    scratch.write("my.config", "CONFIG_PVH=y\n\nint main(void)\n");
    scratch.write("empty.config", "# nothing\n");
    let refused = |arguments: &[&str]| {
        let mut words = vec!["kernel"];
        words.extend(arguments);
        scratch.transcript(&mut scratch.xtask(&words))
    };
    insta::assert_snapshot!(refused(&["--config", "mircovm"]), @r"
    exit code: 125
    ----- stdout
    ----- stderr
    error: no such kernel config: `mircovm`; did you mean `microvm`?

    hint: `--config` takes microvm, recipe or the path of a config file
    ");
    insta::assert_snapshot!(refused(&["--config", "my.confg"]), @r"
    exit code: 125
    ----- stdout
    ----- stderr
    error: no such kernel config: `my.confg`; did you mean `my.config`?

    hint: `--config` takes microvm, recipe or the path of a config file
    ");
    insta::assert_snapshot!(refused(&["--config", "my.config"]), @r"
    exit code: 125
    ----- stdout
    ----- stderr
    error: `my.config:3` is not a line of a kernel config: `int main(void)`
    ");
    insta::assert_snapshot!(refused(&["--config", "empty.config"]), @r"
    exit code: 125
    ----- stdout
    ----- stderr
    error: `empty.config` is not a kernel config: it names no option
    ");
    insta::assert_snapshot!(refused(&["--fragment", "my.config"]), @r"
    exit code: 125
    ----- stdout
    ----- stderr
    error: `my.config:3` is not a line of a kernel config: `int main(void)`
    ");
    insta::assert_snapshot!(refused(&["--fragment", "other"]), @r"
    exit code: 125
    ----- stdout
    ----- stderr
    error: no such kernel fragment: `other`
    ");
    insta::assert_snapshot!(refused(&["--set", "CONFIG_PVH"]), @r"
    exit code: 2
    ----- stdout
    ----- stderr
    error: `--set CONFIG_PVH` has no value, as in `--set CONFIG_X=y`
    ");
    insta::assert_snapshot!(refused(&["--set", "PVH=y"]), @r"
    exit code: 2
    ----- stdout
    ----- stderr
    error: `--set PVH=y` does not name an option, as in `--set CONFIG_X=y`
    ");
}

#[test]
fn bad_sources() {
    let scratch = Scratch::new();
    scratch.write("linux-6.7.4.tar.xz", "<html>404</html>");
    scratch.write("built/Makefile", MAKEFILE);
    scratch.write("built/Kconfig", "");
    scratch.write("built/.config", "");
    let refused = |arguments: &[&str]| {
        let mut words = vec!["kernel"];
        words.extend(arguments);
        scratch.transcript(&mut scratch.xtask(&words))
    };
    insta::assert_snapshot!(refused(&["--version", "6.7.5"]), @r#"
    exit code: 125
    ----- stdout
    ----- stderr
    error: kernel 6.7.5 is not pinned: `kernel/sources.toml` has no sha256 for it, only for 6.7.4

    hint: add `"6.7.5" = "SHA256"` to its table `sha256`; the value is in sha256sums.asc beside the tarball
    "#);
    insta::assert_snapshot!(refused(&["--source", "linux-6.7.3.tar.xz"]), @r"
    exit code: 125
    ----- stdout
    ----- stderr
    error: no such kernel source: `linux-6.7.3.tar.xz`; did you mean `linux-6.7.4.tar.xz`?

    hint: `--source` takes auto, upstream, debian, a tarball or an unpacked kernel tree
    ");
    insta::assert_snapshot!(refused(&["--source", "linux-6.7.4.tar.xz"]), @r"
    exit code: 125
    ----- stdout
    ----- stderr
    error: `linux-6.7.4.tar.xz` is not a tarball (xz, gzip, bzip2, zstd or plain)
    ");
    insta::assert_snapshot!(refused(&["--source", "linux-6.7.4.tar.xz", "--version", "6.7.4"]), @r"
    exit code: 2
    ----- stdout
    ----- stderr
    error: `--version` chooses what is downloaded; `linux-6.7.4.tar.xz` has a version of its own
    ");
    insta::assert_snapshot!(refused(&["--source", "."]), @r"
    exit code: 125
    ----- stdout
    ----- stderr
    error: `.` is not a kernel tree

    Caused by:
        there is no `Makefile` at the top of it
    ");
    insta::assert_snapshot!(refused(&["--source", "built"]), @r"
    exit code: 125
    ----- stdout
    ----- stderr
    error: `built` was built in, and cannot be built from until it is clean

    hint: `make -C built mrproper` removes its build, its `.config` included
    ");
}

#[test]
fn a_tarball_with_another_sha256_is_refused_and_not_kept() {
    let scratch = Scratch::new();
    let server = Server::start(b"not the kernel".to_vec(), &[Answer::Right]);
    let mut command = scratch.xtask(&["kernel", "--source", "upstream"]);
    let transcript = scratch.transcript(command.env("MICROVM_KERNEL_MIRROR", &server.url));
    insta::assert_snapshot!(transcript.replace(&server.url, "[MIRROR]"), @r"
    exit code: 125
    ----- stdout
    ----- stderr
    downloading linux-6.7.4.tar.xz
    checking linux-6.7.4.tar.xz.part
    error: failed to download kernel 6.7.4

    Caused by:
        `[MIRROR]/v6.x/linux-6.7.4.tar.xz` is not the expected file, and was not kept
        its sha256 is 0827e026154aa9c48d3a89e064c0b308c989506ca704262b6a7ad0e624ddc808
        expected is  f68d9f5ffc0a24f850699b86c8aea8b8687de7384158d5ed3bede37de098d60c

    hint: `kernel/sources.toml` names the sha256; MICROVM_KERNEL_MIRROR names another mirror
    ");
    assert_eq!(server.paths(), ["/v6.x/linux-6.7.4.tar.xz"]);
    let downloads = scratch.cache().join("downloads").read_dir_utf8().unwrap();
    assert_eq!(downloads.count(), 0);
}

#[test]
fn a_mirror_without_the_version_is_named() {
    let scratch = Scratch::new();
    let server = Server::start(Vec::new(), &[Answer::Status(404)]);
    let mut command = scratch.xtask(&["kernel", "--source", "upstream"]);
    let transcript = scratch.transcript(command.env("MICROVM_KERNEL_MIRROR", &server.url));
    insta::assert_snapshot!(transcript.replace(&server.url, "[MIRROR]"), @r"
    exit code: 125
    ----- stdout
    ----- stderr
    error: `[MIRROR]/v6.x/linux-6.7.4.tar.xz` does not exist

    hint: `--source debian` builds the distribution's kernel source
    ");
}

#[test]
fn a_kernel_is_built_once_and_again_when_its_tree_changes() {
    let scratch = Scratch::new();
    tiny_kernel(&scratch, "exit 0");
    let first = build(&scratch, &[]).output().unwrap();
    let (paths, talk) = texts(&first);
    assert!(first.status.success(), "{talk}");
    assert!(talk.ends_with("kernel 6.99.1 config (linux)\n"), "{talk}");
    let vmlinux = paths.lines().next().unwrap();
    assert_eq!(std::fs::read_to_string(vmlinux).unwrap(), "CONFIG_WANTED=y\n");
    assert_eq!(std::fs::read_to_string(paths.lines().nth(1).unwrap()).unwrap(), "bzImage");

    let second = build(&scratch, &[]).output().unwrap();
    assert_eq!(texts(&second), (paths.clone(), "kernel 6.99.1 config (linux)\n".to_owned()));
    assert_eq!(compiles(&scratch), 1);

    // A setting that is there already makes the same config, and so the same kernel.
    let same = texts(&build(&scratch, &["--set", "CONFIG_WANTED=y"]).output().unwrap()).0;
    assert_eq!((same.as_str(), compiles(&scratch)), (paths.as_str(), 1));

    scratch.write("linux/vmlinux.in", "changed");
    let third = texts(&build(&scratch, &[]).output().unwrap()).0;
    assert_ne!(third, paths);
    assert_eq!(std::fs::read_to_string(third.lines().nth(1).unwrap()).unwrap(), "changed");
}

#[test]
fn an_option_that_does_not_take_is_named() {
    let scratch = Scratch::new();
    tiny_kernel(&scratch, "exit 0");
    scratch.write("fragment", "# why\nCONFIG_REFUSED=y\n");
    let transcript =
        scratch.transcript(&mut build(&scratch, &["--fragment", "fragment", "--set", "CONFIG_WANTD=y"]));
    insta::assert_snapshot!(transcript, @r"
    exit code: 125
    ----- stdout
    ----- stderr
    configuring the kernel
    error: failed to build the kernel `config+2` from linux

    Caused by:
        1 kernel config option did not take
        CONFIG_REFUSED (fragment:2): wanted y, got n; depends on BROKEN

    hint: `olddefconfig` drops an option whose dependencies are not met: ask for those as well
    ");
    assert_eq!(compiles(&scratch), 0);
}

#[test]
fn a_compile_that_fails_shows_why_and_leaves_no_kernel() {
    let scratch = Scratch::new();
    tiny_kernel(&scratch, "echo 'init/main.c:1: error: expected `;`' >&2; exit 1");
    let output = build(&scratch, &[]).output().unwrap();
    let talk = texts(&output).1;
    assert_eq!(output.status.code(), Some(125));
    assert!(talk.contains("error: failed to build the kernel `config` from linux"), "{talk}");
    assert!(talk.contains("init/main.c:1: error: expected `;`"), "{talk}");
    assert_eq!(finished(&scratch), [] as [&Utf8Path; 0]);
}

#[test]
fn a_full_disk_is_said_and_the_half_build_removed() {
    let scratch = Scratch::new();
    tiny_kernel(&scratch, "cp Makefile /dev/full");
    let talk = texts(&build(&scratch, &[]).output().unwrap()).1;
    assert!(talk.contains("No space left on device"), "{talk}");
    assert!(talk.contains("hint: the disk is full; the half build in"), "{talk}");
    assert_eq!(finished(&scratch), [] as [&Utf8Path; 0]);
    assert_eq!(scratch.cache().join("kernel-builds").read_dir_utf8().unwrap().count(), 0);
}

/// Compiles until it is told to stop by a file, and leaves its process id.
const SLOW: &str = "echo $$ > ../pid.new; mv ../pid.new ../pid; while [ ! -e ../go ]; do sleep 0.02; done";

fn start_slow(scratch: &Scratch) -> (Child, i32) {
    let child = build(scratch, &[]).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let pid = scratch.path().join("pid");
    wait_until("the compile runs", || pid.exists());
    (child, std::fs::read_to_string(pid).unwrap().trim().parse().unwrap())
}

fn is_running(pid: i32) -> bool {
    // A zombie's command line is empty.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

#[test]
fn an_interrupted_compile_ends_and_leaves_no_kernel() {
    let scratch = Scratch::new();
    tiny_kernel(&scratch, SLOW);
    let (mut child, compiler) = start_slow(&scratch);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    wait_until("the compiler ends", || !is_running(compiler));
    assert_eq!(finished(&scratch), [] as [&Utf8Path; 0]);

    scratch.write("go", "");
    let output = build(&scratch, &[]).output().unwrap();
    assert!(output.status.success(), "{}", texts(&output).1);
}

#[test]
fn two_tasks_at_once_take_turns() {
    let scratch = Scratch::new();
    tiny_kernel(&scratch, SLOW);
    let (first, _) = start_slow(&scratch);
    let log = scratch.path().join("second.log");
    let mut second = build(&scratch, &[]);
    let second = second.stdout(Stdio::piped()).stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    wait_until("the second task waits", || {
        std::fs::read_to_string(&log).unwrap().contains("waiting for another task that works on a kernel")
    });
    scratch.write("go", "");
    let outputs = [first, second].map(|child| child.wait_with_output().unwrap());
    assert!(outputs.iter().all(|output| output.status.success()));
    assert_eq!(outputs[0].stdout, outputs[1].stdout);
    assert_eq!(compiles(&scratch), 1);
}

#[test]
fn a_tarball_is_unpacked_built_and_cleared_away() {
    let scratch = Scratch::new();
    tiny_kernel(&scratch, "exit 0");
    // The compile script lies beside the tree, which is in the cache this time.
    scratch.write("cache/kernel-builds/compile", "exit 0");
    duct::cmd!("tar", "-czf", "linux.tar.gz", "linux").dir(scratch.path()).run().unwrap();
    let arguments = ["kernel", "--config", "config", "--source", "linux.tar.gz"];
    let output = scratch.xtask(&arguments).output().unwrap();
    assert!(output.status.success(), "{}", texts(&output).1);
    let left = scratch.cache().join("kernel-builds").read_dir_utf8().unwrap();
    let mut left: Vec<String> = left.map(|entry| entry.unwrap().file_name().to_owned()).collect();
    left.sort();
    assert_eq!(left, ["compile", "count"]);
    let again = texts(&scratch.xtask(&arguments).output().unwrap()).1;
    assert_eq!(again, "kernel 6.99.1 config (linux.tar.gz)\n");
}

#[test]
fn a_tarball_that_ends_too_early_leaves_no_tree() {
    let scratch = Scratch::new();
    tiny_kernel(&scratch, "exit 0");
    duct::cmd!("tar", "-czf", "linux.tar.gz", "linux").dir(scratch.path()).run().unwrap();
    let tarball = scratch.path().join("linux.tar.gz");
    let bytes = std::fs::read(&tarball).unwrap();
    std::fs::write(&tarball, &bytes[..bytes.len() / 2]).unwrap();
    let output =
        scratch.xtask(&["kernel", "--config", "config", "--source", "linux.tar.gz"]).output().unwrap();
    let talk = texts(&output).1;
    assert_eq!(output.status.code(), Some(125));
    assert!(talk.contains(&format!("failed to unpack `{tarball}`")), "{talk}");
    assert_eq!(scratch.cache().join("kernel-builds").read_dir_utf8().unwrap().count(), 0);
}

/// make splits paths at blanks and colons, and a shell reads the rest. The cache, the tree and the working folder may be
/// anywhere all the same.
#[test]
fn a_kernel_is_built_whatever_its_folders_are_called() {
    for name in ["with a blank", "it's", "a:b", "a$HOME#b", "two  blanks & more;"] {
        let scratch = Scratch::new();
        let tree = tiny_kernel(&scratch, "");
        let odd = scratch.path().join(name);
        std::fs::create_dir(&odd).unwrap();
        // What the tiny kernel counts with is beside its folder, and beside the one that stands for it.
        std::fs::write(
            scratch.path().join("linux/Makefile"),
            MAKEFILE.replace("\t@echo compiled >> ../count\n\t@sh ../compile\n", ""),
        )
        .unwrap();
        let tarball = odd.join("linux.tar.gz");
        let packed = Command::new("tar")
            .args(["-czf", tarball.as_str(), "-C", scratch.path().as_str(), "linux"])
            .status();
        assert!(packed.unwrap().success());
        std::fs::rename(&tree, odd.join("linux")).unwrap();
        let mut caches = Vec::new();
        for (number, source) in ["linux", "linux.tar.gz", "linux"].into_iter().enumerate() {
            let cache = odd.join(format!("cache {}", number % 2));
            let mut command = scratch.xtask(&["kernel", "--source", source, "--config", "../config"]);
            let output = command.env("MICROVM_CACHE", &cache).current_dir(&odd).output().unwrap();
            let (images, talk) = texts(&output);
            assert!(output.status.success(), "{name}, {source}: {talk}");
            assert!(images.starts_with(cache.as_str()), "{images}");
            let built = std::fs::read_to_string(images.lines().next().unwrap()).unwrap();
            assert!(built.contains("CONFIG_WANTED=y"), "{built}");
            caches.push(cache);
        }
        // The tree was only read.
        let mut left: Vec<_> = odd
            .join("linux")
            .read_dir_utf8()
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_owned())
            .collect();
        left.sort();
        assert_eq!(left, ["Kconfig", "Makefile", "vmlinux.in"]);
        for cache in caches {
            let workspace = xtask::workspace::Workspace::discover().unwrap().with_cache(cache);
            let _ = std::fs::remove_dir_all(workspace.kernel_builds());
        }
    }
}
