//! A far machine on loopback: an `sshd` of the test's own, with throwaway keys, its own home folder and its own PATH.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use std::{fs, thread};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::Signal;
use xtask::host::process::die_with;
use xtask::host::tools::find;

/// Longer than anything here takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) struct World {
    _guard: tempfile::TempDir,
    folder: Utf8PathBuf,
    pub(crate) port: u16,
    sshd: Child,
}

impl World {
    /// Starts the far machine.
    pub(crate) fn new() -> World {
        let guard = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::from_path_buf(guard.path().canonicalize().unwrap()).unwrap();
        for name in ["home", "bin", "cache"] {
            fs::create_dir(folder.join(name)).unwrap();
        }
        for name in ["host_key", "user_key", "stranger_key"] {
            let keygen = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
                .arg(folder.join(name))
                .status();
            assert!(keygen.unwrap().success());
        }
        if rustix::process::geteuid().is_root() {
            // Where sshd confines its unprivileged half; the service's unit makes it on a machine that runs one.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        // Between the choice of a port and sshd's own bind, another program may take it.
        let (sshd, port) =
            (0..5).find_map(|_| start_sshd(&folder)).expect("sshd did not start on any of five ports");
        let key = fs::read_to_string(folder.join("host_key.pub")).unwrap();
        fs::write(folder.join("known_hosts"), format!("[127.0.0.1]:{port} {key}")).unwrap();
        World { _guard: guard, folder, port, sshd }
    }

    /// The far user's home folder.
    pub(crate) fn home(&self) -> Utf8PathBuf {
        self.folder.join("home")
    }

    /// A folder on this side.
    pub(crate) fn near(&self) -> Utf8PathBuf {
        self.folder.join("near")
    }

    /// The near side's cache, with its locks.
    pub(crate) fn cache(&self) -> Utf8PathBuf {
        self.folder.join("cache")
    }

    /// Puts a script before the far side's own program of this name.
    pub(crate) fn replace_program(&self, name: &str, script: &str) {
        let path = self.folder.join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Leaves the far side with the programs of a busybox and nothing else.
    pub(crate) fn only_busybox(&self) {
        let busybox = find("busybox").expect("busybox is among the tests' tools");
        for name in ["sh", "tar", "sha256sum", "wc", "ls", "head"] {
            std::os::unix::fs::symlink(&busybox, self.folder.join("bin").join(name)).unwrap();
        }
        fs::write(self.home().join(".bashrc"), format!("PATH={}/bin\necho welcome\n", self.folder)).unwrap();
    }

    /// The words that make ssh use this world's keys and nothing of the user's.
    pub(crate) fn ssh_words(&self, key: &str) -> Vec<String> {
        let folder = &self.folder;
        vec![
            format!("-i{folder}/{key}"),
            format!("-oUserKnownHostsFile={folder}/known_hosts"),
            "-oGlobalKnownHostsFile=none".into(),
            "-oStrictHostKeyChecking=yes".into(),
            "-oIdentitiesOnly=yes".into(),
            "-oIdentityAgent=none".into(),
            // known_hosts names the port that sshd has, also where a test goes through another one
            format!("-oHostKeyAlias=[127.0.0.1]:{}", self.port),
        ]
    }

    /// `cargo xtask collect 127.0.0.1:PORT` with this world's keys.
    pub(crate) fn collect(&self) -> assert_cmd::Command {
        self.collect_from(self.port, "user_key")
    }

    /// The same with another port or key.
    pub(crate) fn collect_from(&self, port: u16, key: &str) -> assert_cmd::Command {
        let mut command = assert_cmd::Command::from_std(self.std_command());
        command.arg(format!("127.0.0.1:{port}")).args(self.ssh_words(key)).timeout(DEADLINE);
        command
    }

    /// `cargo xtask collect` with a cache of its own.
    pub(crate) fn std_command(&self) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("xtask"));
        command.env("MICROVM_CACHE", self.cache()).arg("collect").stdin(Stdio::null());
        command
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

/// Starts sshd on a port that is free now, and waits until it listens; `None` if the port was taken meanwhile.
fn start_sshd(folder: &Utf8Path) -> Option<(Child, u16)> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = folder.join("sshd_config");
    let text = format!(
        "Port {port}\n\
         ListenAddress 127.0.0.1\n\
         HostKey {folder}/host_key\n\
         AuthorizedKeysFile {folder}/user_key.pub\n\
         PidFile none\n\
         UsePAM no\n\
         StrictModes no\n\
         PermitRootLogin yes\n\
         PasswordAuthentication no\n\
         KbdInteractiveAuthentication no\n\
         SetEnv HOME={folder}/home PATH={folder}/bin:/usr/local/bin:/usr/bin:/bin\n"
    );
    fs::write(&config, text).unwrap();
    // sshd runs itself again for each connection: it wants its own absolute path.
    let mut command = Command::new(find("sshd").expect("sshd is among the tests' tools"));
    command.args(["-D", "-e", "-f"]).arg(&config).stdin(Stdio::null()).stderr(Stdio::piped());
    die_with(&mut command, rustix::process::getpid(), Signal::TERM);
    let mut sshd = command.spawn().unwrap();

    let mut lines = BufReader::new(sshd.stderr.take().unwrap()).lines();
    let (sender, receiver) = mpsc::channel();
    // The pipe is read to its end, so that sshd never waits for a reader.
    thread::spawn(move || {
        let mut is_told = false;
        while let Some(Ok(line)) = lines.next() {
            if !is_told && line.contains("Server listening on") {
                is_told = sender.send(()).is_ok();
            }
        }
    });
    // An error is an sshd that ended and dropped the sender.
    match receiver.recv_timeout(DEADLINE) {
        Ok(()) => Some((sshd, port)),
        Err(_) => {
            let _ = sshd.kill();
            sshd.wait().unwrap();
            None
        }
    }
}

/// Bytes that no compression or zero-skipping gets rid of, different for each seed.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    std::iter::repeat_with(|| {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 56) as u8
    })
    .take(length)
    .collect()
}

/// Writes a file and the folders above it.
pub(crate) fn write(path: &Utf8Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Every file below a folder with its content, hidden ones too.
pub(crate) fn listing(folder: &Utf8Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap_or_default())
        })
        .collect();
    files.sort();
    files
}
