//! Carries a guest's frames through the [guard](super::guard): out of QEMU by one socket, and what may go on back by
//! another (QEMU's `filter-redirector`). A frame is its length (u32 BE) and its bytes.
//!
//! When this process ends, the guest's frames go nowhere.

use std::io::{self, BufReader, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::guard::{Guard, LONGEST_FRAME};
use crate::vm::inherited::Inherited;
use crate::vm::machine::GuardSockets;

/// Frames under way; more are dropped, as networks do. It never waits for QEMU, which may be waiting for it.
const QUEUE: usize = 1024;

/// Connects with QEMU. Errors where a socket cannot be made.
pub(super) fn start(sockets: &GuardSockets, inherited: &mut Inherited) -> anyhow::Result<()> {
    let guard = Arc::new(Mutex::new(Guard::new(sockets.allows_host)));
    let leaving = Arc::clone(&guard);
    direction(&sockets.leaving(), inherited, move |frame| {
        leaving.lock().unwrap_or_else(PoisonError::into_inner).leaves(frame, Instant::now())
    })?;
    if sockets.with_arriving {
        direction(&sockets.arriving(), inherited, move |frame| {
            guard.lock().unwrap_or_else(PoisonError::into_inner).arrives(&frame, Instant::now());
            Some(frame)
        })?;
    }
    Ok(())
}

/// Carries frames of one direction, what `passes` leaves of them.
fn direction(
    [out, back]: &[camino::Utf8PathBuf; 2],
    inherited: &mut Inherited,
    mut passes: impl FnMut(Vec<u8>) -> Option<Vec<u8>> + Send + 'static,
) -> anyhow::Result<()> {
    let (out, back) = (inherited.connect(out)?, inherited.connect(back)?);
    let (sender, frames) = sync_channel(QUEUE);
    std::thread::spawn(move || {
        // It ends with QEMU.
        let _ = read(out, &sender, &mut passes);
    });
    std::thread::spawn(move || {
        let _ = write(back, &frames);
    });
    Ok(())
}

fn read(
    stream: UnixStream,
    sender: &SyncSender<Vec<u8>>,
    passes: &mut dyn FnMut(Vec<u8>) -> Option<Vec<u8>>,
) -> io::Result<()> {
    let mut stream = BufReader::with_capacity(LONGEST_FRAME, stream);
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let size = u32::from_be_bytes(length) as usize;
        if size > LONGEST_FRAME {
            return Err(io::Error::other("a frame that no device sends"));
        }
        let mut frame = vec![0; size];
        stream.read_exact(&mut frame)?;
        if let Some(frame) = passes(frame) {
            // A full queue drops the frame; one without a reader is the machine's end.
            let _ = sender.try_send(frame);
        }
    }
}

fn write(mut stream: UnixStream, frames: &Receiver<Vec<u8>>) -> io::Result<()> {
    let mut bytes = Vec::new();
    frames.iter().try_for_each(|frame| {
        bytes.clear();
        // `LONGEST_FRAME` is far below.
        bytes.extend((frame.len() as u32).to_be_bytes());
        bytes.extend(frame);
        stream.write_all(&bytes)
    })
}
