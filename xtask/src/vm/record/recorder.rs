//! Stands between the supervisor and whoever has the main process's streams: writes down what becomes of the process
//! and what it says, and passes everything on.

use std::sync::Arc;

use init::protocol::Message;
use jiff::Timestamp;

use super::Record;
use super::output_log::{OutputLog, Piece};
use crate::vm::queue::{Receiver, Sender};
use crate::vm::supervise::supervisor::MainClient;

/// What a recorder works with.
pub struct Recorder {
    /// Where the state is kept.
    pub record: Arc<Record>,
    /// Where the output is kept; `None` keeps none.
    pub log: Option<OutputLog>,
    /// Who gets the frames; without one the output goes to the log alone.
    pub listener: Option<Sender>,
    /// The main process's end of the conversation.
    pub client: MainClient,
    /// Called once, when the main process runs.
    pub on_started: Box<dyn FnOnce() + Send>,
}

impl Recorder {
    /// Follows the main process to its end.
    pub fn run(self, frames: Receiver) {
        let Recorder { record, mut log, listener, client, on_started } = self;
        let mut on_started = Some(on_started);
        let mut has_warned = false;
        for frame in frames {
            match &frame.message {
                Message::Started { .. } => {
                    record.update(|state| state.started = Some(Timestamp::now()));
                    if let Some(on_started) = on_started.take() {
                        on_started();
                    }
                }
                Message::Data(stream, bytes) => {
                    if let Some(writer) = &mut log {
                        let milliseconds = Timestamp::now().as_millisecond();
                        let piece = Piece { milliseconds, stream: *stream, bytes: bytes.clone() };
                        if let Err(error) = writer.write(&piece)
                            && !std::mem::replace(&mut has_warned, true)
                        {
                            // A full disk is not to end a machine.
                            crate::note!(
                                "warning: failed to write the output's log, which has gaps now: {error}"
                            );
                        }
                    }
                    if listener.is_none() {
                        client.say(Message::Credit(*stream, bytes.len() as u32));
                    }
                }
                _ => {}
            }
            if let Some(listener) = &listener {
                // One that has left wants no more; for one that is slow the queue before this one has room.
                let _ = listener.send(frame);
            }
        }
    }
}
