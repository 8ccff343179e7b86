//! Carries a guest's frames through the [guard](super::guard): out of QEMU by one socket, and what may go on back by
//! another (QEMU's `filter-redirector`). A frame is its length (u32 BE) and its bytes.
//!
//! When this process ends, the guest's frames go nowhere.

use std::io::{self, BufReader, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::guard::{Guard, LONGEST_FRAME};
use crate::vm::inherited::Inherited;
use crate::vm::machine::GuardSockets;

/// Frames under way; more are dropped, as networks do. It never waits for QEMU, which may be waiting for it.
const QUEUE: usize = 1024;

/// Connects with QEMU. Errors where a socket cannot be made.
pub(super) fn start(sockets: &GuardSockets, inherited: &mut Inherited) -> anyhow::Result<()> {
    let guard = Arc::new(Mutex::new(Guard::default()));
    let leaving = Arc::clone(&guard);
    direction(&sockets.leaving(), inherited, move |frame| {
        leaving.lock().unwrap_or_else(PoisonError::into_inner).leaves(frame)
    })?;
    if sockets.with_arriving {
        direction(&sockets.arriving(), inherited, move |frame| {
            guard.lock().unwrap_or_else(PoisonError::into_inner).arrives(frame);
            true
        })?;
    }
    Ok(())
}

/// Carries frames of one direction, those that `may_pass`, as it leaves them.
fn direction(
    [out, back]: &[camino::Utf8PathBuf; 2],
    inherited: &mut Inherited,
    mut may_pass: impl FnMut(&mut [u8]) -> bool + Send + 'static,
) -> anyhow::Result<()> {
    let (out, back) = (inherited.connect(out)?, inherited.connect(back)?);
    let (sender, frames) = sync_channel(QUEUE);
    std::thread::spawn(move || {
        // It ends with QEMU.
        let _ = read(out, &sender, &mut may_pass);
    });
    std::thread::spawn(move || {
        let _ = write(back, &frames);
    });
    Ok(())
}

fn read(
    stream: UnixStream,
    sender: &SyncSender<Vec<u8>>,
    may_pass: &mut dyn FnMut(&mut [u8]) -> bool,
) -> io::Result<()> {
    let mut stream = BufReader::with_capacity(LONGEST_FRAME, stream);
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let size = u32::from_be_bytes(length) as usize;
        if size > LONGEST_FRAME {
            return Err(io::Error::other("a frame that no device sends"));
        }
        let mut frame = vec![0; 4 + size];
        frame[..4].copy_from_slice(&length);
        stream.read_exact(&mut frame[4..])?;
        if may_pass(&mut frame[4..]) {
            // A full queue drops the frame; one without a reader is the machine's end.
            let _ = sender.try_send(frame);
        }
    }
}

fn write(mut stream: UnixStream, frames: &Receiver<Vec<u8>>) -> io::Result<()> {
    frames.iter().try_for_each(|frame| stream.write_all(&frame))
}
