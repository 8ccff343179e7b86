//! Every program and header that tasks use, with the Debian package that brings it. The one place to add a tool.

use camino::Utf8PathBuf;

/// How one sees that a tool is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// A program on PATH, or in the folders for system administration that a user's PATH may lack.
    Program(&'static str),
    /// A program that builds Dockerfiles: one of [`BUILDERS`] that works.
    Builder,
    /// Any one of these files: headers, libraries.
    AnyFile(&'static [&'static str]),
    /// A program that podman and buildah need. Docker's daemon does without.
    Podman(&'static str),
    /// A program that they need where they are not run by root.
    RootlessPodman(&'static str),
}

/// What a tool is for. Tasks ask for a purpose and get its tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Compile the kernel.
    Kernel,
    /// Link PID 1.
    Init,
    /// Build a Dockerfile.
    Build,
    /// Make disks.
    Image,
    /// Run a machine.
    Boot,
    /// Fetch artifacts from another machine.
    Collect,
    /// The recipe's own way to make a disk, for comparison.
    Guestfs,
    /// Run every test.
    Test,
    /// Build the fuzz targets.
    Fuzz,
}

impl Purpose {
    /// All of them, in the order of a first run.
    pub const ALL: [Purpose; 8] = [Kernel, Init, Build, Image, Boot, Collect, Guestfs, Test];

    /// What `boot` does on a machine that has nothing yet.
    pub const FIRST_BOOT: [Purpose; 5] = [Kernel, Init, Build, Image, Boot];

    /// The task, or the part of one, that needs the tools.
    pub fn task(self) -> &'static str {
        match self {
            Kernel => "kernel",
            Init => "init",
            Build => "image DOCKERFILE",
            Image => "image",
            Boot => "boot",
            Collect => "collect",
            Guestfs => "image --mkfs virt-make-fs",
            Test => "test",
            Fuzz => "test --all",
        }
    }
}

/// One thing that must be on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// How to see it.
    pub probe: Probe,
    /// Debian and Ubuntu package.
    pub package: &'static str,
    /// Which work needs it.
    pub purposes: &'static [Purpose],
}

use Purpose::{Boot, Build, Collect, Fuzz, Guestfs, Image, Init, Kernel, Test};

const fn tool(probe: Probe, package: &'static str, purposes: &'static [Purpose]) -> Tool {
    Tool { probe, package, purposes }
}

const fn program(name: &'static str, package: &'static str, purposes: &'static [Purpose]) -> Tool {
    tool(Probe::Program(name), package, purposes)
}

/// All tools, in the order in which a newcomer meets them.
pub const TOOLS: &[Tool] = &[
    program("make", "make", &[Kernel]),
    program("gcc", "gcc", &[Kernel, Init]),
    tool(
        Probe::AnyFile(&["/usr/lib/x86_64-linux-gnu/libc.a", "/usr/lib/libc.a", "/usr/lib64/libc.a"]),
        "libc6-dev",
        &[Kernel, Init],
    ),
    program("bc", "bc", &[Kernel]),
    program("flex", "flex", &[Kernel]),
    program("bison", "bison", &[Kernel]),
    program("perl", "perl", &[Kernel]),
    program("xz", "xz-utils", &[Kernel, Test]),
    // objtool reads ELF files
    tool(Probe::AnyFile(&["/usr/include/gelf.h", "/usr/include/libelf/gelf.h"]), "libelf-dev", &[Kernel]),
    // certificates and module signing, in the recipe's config
    tool(Probe::AnyFile(&["/usr/include/openssl/ssl.h"]), "libssl-dev", &[Kernel]),
    program("tar", "tar", &[Kernel, Collect, Test]),
    program("qemu-system-x86_64", "qemu-system-x86", &[Boot]),
    program("qemu-img", "qemu-utils", &[Image, Boot]),
    tool(Probe::Builder, "podman", &[Build]),
    tool(Probe::RootlessPodman("newuidmap"), "uidmap", &[Build]),
    // runs a RUN, without cgroups where that has to be
    tool(Probe::Podman("crun"), "crun", &[Build]),
    // a RUN's network: the one is a confined builder's and podman 4's, the other podman 5's
    tool(Probe::Podman("slirp4netns"), "slirp4netns", &[Build]),
    tool(Probe::RootlessPodman("pasta"), "passt", &[Build]),
    // what the default image is made of, and for the tests a far machine that has nothing else
    program("busybox", "busybox-static", &[Build, Test]),
    program("ssh", "openssh-client", &[Collect]),
    program("virt-make-fs", "guestfs-tools", &[Guestfs]),
    // guestfs boots the host's kernel, which containers and build machines may lack
    tool(Probe::AnyFile(&["/boot/vmlinuz", "/vmlinuz"]), "linux-image-cloud-amd64", &[Guestfs]),
    program("mmdebstrap", "mmdebstrap", &[Test]),
    // the stand-in base is a Debian on Ubuntu too
    tool(
        Probe::AnyFile(&["/usr/share/keyrings/debian-archive-keyring.gpg"]),
        "debian-archive-keyring",
        &[Test],
    ),
    // keeps the stand-in base, whichever program builds Dockerfiles
    program("podman", "podman", &[Test]),
    program("sshd", "openssh-server", &[Test]),
    program("ssh-keygen", "openssh-client", &[Test]),
    program("cpio", "cpio", &[Test]),
    program("curl", "curl", &[Test]),
    program("e2fsck", "e2fsprogs", &[Test]),
    // a real registry, what fills it, and another's reading of the same layers
    program("docker-registry", "docker-registry", &[Test]),
    program("skopeo", "skopeo", &[Test]),
    program("umoci", "umoci", &[Test]),
    program("openssl", "openssl", &[Test]),
    program("gzip", "gzip", &[Test]),
    program("zstd", "zstd", &[Test]),
    // libFuzzer is of C++
    program("g++", "g++", &[Fuzz]),
];

/// A user's PATH on Debian lacks these, and some tools live there (mke2fs, sshd).
const SYSTEM_FOLDERS: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// The programs that build Dockerfiles, the first choice first.
pub const BUILDERS: [&str; 3] = ["podman", "buildah", DOCKER];

const DOCKER: &str = "docker";

/// The first of [`BUILDERS`] that is there and works: docker's client may be there without a daemon.
pub fn find_builder() -> Option<&'static str> {
    BUILDERS.into_iter().find(|name| find(name).is_some() && (*name != DOCKER || docker_answers()))
}

fn docker_answers() -> bool {
    duct::cmd!(DOCKER, "version").stdin_null().stdout_null().stderr_null().run().is_ok()
}

/// True if Dockerfiles are built by podman or buildah.
fn builds_without_daemon() -> bool {
    find_builder() != Some(DOCKER)
}

/// Where a program is, or `None`.
pub fn find(name: &str) -> Option<Utf8PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    which::which_in(name, Some(format!("{path}:{SYSTEM_FOLDERS}")), "/")
        .ok()
        .and_then(|found| Utf8PathBuf::from_path_buf(found).ok())
}

impl Tool {
    /// Where the tool was found, or `None` where it is missing.
    pub fn locate(&self) -> Option<Utf8PathBuf> {
        match self.probe {
            Probe::Program(name) => find(name),
            Probe::Builder => find_builder().and_then(find),
            Probe::AnyFile(paths) => paths.iter().map(Utf8PathBuf::from).find(|path| path.exists()),
            Probe::Podman(name) | Probe::RootlessPodman(name) => find(name),
        }
    }

    /// The tool's name in a sentence.
    pub fn name(&self) -> String {
        match self.probe {
            Probe::Program(name) | Probe::Podman(name) | Probe::RootlessPodman(name) => name.to_owned(),
            Probe::Builder => BUILDERS.join(" or "),
            Probe::AnyFile(paths) => paths[0].to_owned(),
        }
    }

    /// True if work that needs the tool cannot be done on this host.
    pub fn is_missing(&self) -> bool {
        let is_needed = match self.probe {
            Probe::Podman(_) => builds_without_daemon(),
            Probe::RootlessPodman(_) => builds_without_daemon() && !rustix::process::geteuid().is_root(),
            _ => true,
        };
        self.locate().is_none() && is_needed
    }

    /// True if some of this work needs the tool.
    pub fn serves(&self, purposes: &[Purpose]) -> bool {
        self.purposes.iter().any(|purpose| purposes.contains(purpose))
    }
}

/// The tools for some work that are not on this host.
pub fn missing(purposes: &[Purpose]) -> Vec<Tool> {
    TOOLS.iter().filter(|tool| tool.serves(purposes) && tool.is_missing()).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_and_a_fantasy_is_not() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-anywhere"), None);
    }

    #[test]
    fn every_tool_serves_a_purpose() {
        assert!(TOOLS.iter().all(|tool| !tool.purposes.is_empty() && !tool.package.is_empty()));
    }
}
