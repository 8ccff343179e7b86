//! The agent's port, spoken without any of the agent's manners.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use init::protocol::{Decoder, Frame, MACHINE_CHANNEL, MAIN_CHANNEL, Message, PORT_NAME, VERSION};

/// The port.
pub(crate) struct Port {
    file: File,
    decoder: Decoder,
}

impl Port {
    /// Waits for the driver to name it.
    pub(crate) fn open() -> Port {
        loop {
            if let Some(path) = find() {
                let file = File::options().read(true).write(true).open(path).expect("the port opens");
                return Port { file, decoder: Decoder::default() };
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends bytes, whatever they mean; blocks for as long as the host takes none.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.file.write_all(bytes).expect("the port takes bytes");
    }

    /// Sends a frame.
    pub(crate) fn say(&mut self, channel: u32, message: Message) {
        let mut bytes = Vec::new();
        Frame::new(channel, message).encode(&mut bytes);
        self.raw(&bytes);
    }

    /// Says what an honest agent says until its main process runs.
    pub(crate) fn start(&mut self) {
        self.say(MACHINE_CHANNEL, Message::Hello { version: VERSION });
        self.say(MAIN_CHANNEL, Message::Started { pid: 1 });
    }

    /// The host's next frame.
    pub(crate) fn hear(&mut self) -> Frame {
        let mut bytes = vec![0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("the host is honest") {
                return frame;
            }
            match self.file.read(&mut bytes).expect("the port gives bytes") {
                0 => std::thread::sleep(Duration::from_millis(2)),
                length => self.decoder.push(&bytes[..length]),
            }
        }
    }
}

fn find() -> Option<PathBuf> {
    let mut ports = fs::read_dir("/sys/class/virtio-ports").ok()?.flatten();
    let port = ports.find(|port| {
        fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim_end() == PORT_NAME)
    })?;
    Some(PathBuf::from("/dev").join(port.file_name()))
}
