//! Downloads one file whose sha256 is known: resumable, verified before it gets its name.
//!
//! What has arrived is kept in `NAME.part` beside the destination until the file is whole, also when the task is
//! interrupted. A file with another sha256 is removed.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use ureq::http::{Response, StatusCode, header};

use super::file_hash;
use crate::artifact::{create_folder, publish_file, remove_any, require_space};
use crate::error::Hint as _;
use crate::pace::{Pace, Slowest};
use crate::ui::human_bytes;
use crate::{note, ui};

/// A host that cannot be reached is known within this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that says nothing for this long has gone away.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// No kernel's tarball is larger (Linux 6.12: 140 MiB).
const LARGEST: u64 = 2 << 30;
/// Connections that may break in a row without one byte arriving in between.
const MAX_FRUITLESS: u32 = 3;
/// Before another try, so that a restarting server gets the time.
const PAUSE: Duration = Duration::from_millis(500);

/// A download whose server has answered.
#[derive(Debug)]
pub struct Download {
    agent: ureq::Agent,
    url: String,
    destination: Utf8PathBuf,
    part: Utf8PathBuf,
    connection: Connection,
    slowest: Slowest,
}

#[derive(Debug)]
enum Connection {
    /// The server sends what follows byte `offset`.
    Receiving { offset: u64, total: Option<u64>, body: Box<ureq::Body> },
    /// All bytes were there already.
    Complete,
}

impl Download {
    /// Asks the server for the part of `destination` that is not here yet.
    ///
    /// Errors where the server cannot be reached or does not offer the file; nothing on the disk has changed then.
    pub fn begin(url: &str, destination: &Utf8Path) -> anyhow::Result<Download> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_send_request(Some(SILENCE_TIMEOUT))
            .timeout_recv_response(Some(SILENCE_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .http_status_as_error(false)
            .user_agent("microvm-workbench")
            .build()
            .into();
        let part = Utf8PathBuf::from(format!("{destination}.part"));
        let connection = connect(&agent, url, &part)?;
        let (url, destination) = (url.to_owned(), destination.to_owned());
        Ok(Download { agent, url, destination, part, connection, slowest: Slowest::default() })
    }

    /// With another limit for a body that trickles.
    pub fn no_slower_than(self, slowest: Slowest) -> Download {
        Download { slowest, ..self }
    }

    /// Receives the rest, reconnecting where the connection breaks, and puts the verified file at its destination.
    pub fn finish(mut self, sha256: &str) -> anyhow::Result<()> {
        let name = self.destination.file_name().unwrap_or_default().to_owned();
        let mut fruitless = 0;
        let mut pace = Pace::new(self.slowest, Instant::now());
        while let Connection::Receiving { offset, total, body } = self.connection {
            let (received, result) = receive(&name, &self.part, offset, total, *body, &mut pace)?;
            let Err(cut) = result else { break };
            fruitless = if received > 0 { 0 } else { fruitless + 1 };
            if fruitless == MAX_FRUITLESS {
                return Err(cut)
                    .with_context(|| format!("the download of `{}` broke off", self.url))
                    .hint("run the same task again: it goes on where this one stopped");
            }
            note!("the connection broke ({cut}); going on");
            std::thread::sleep(PAUSE);
            self.connection = connect(&self.agent, &self.url, &self.part)
                .hint("run the same task again: it goes on where this one stopped")?;
        }
        let actual = file_hash::compute(&self.part)?;
        if actual != sha256 {
            remove_any(&self.part)?;
            return Err(anyhow!("its sha256 is {actual}\nexpected is  {sha256}"))
                .with_context(|| format!("`{}` is not the expected file, and was not kept", self.url));
        }
        publish_file(&self.part, &self.destination)
    }
}

fn connect(agent: &ureq::Agent, url: &str, part: &Utf8Path) -> anyhow::Result<Connection> {
    let ask = |offset: u64| {
        let mut request = agent.get(url).header(header::ACCEPT_ENCODING, "identity");
        if offset > 0 {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        request.call().with_context(|| format!("failed to reach `{url}`"))
    };
    let offset = fs::metadata(part).map_or(0, |metadata| metadata.len());
    let mut response = ask(offset)?;
    if offset > 0 && matches!(response.status().as_u16(), 206 | 416) {
        let range = content_range(&response);
        if response.status() == StatusCode::PARTIAL_CONTENT {
            if range.is_some_and(|range| range.starts_with(&format!("{offset}-"))) {
                return Ok(receiving(offset, response));
            }
        } else if range == Some(&format!("*/{offset}")) {
            return Ok(Connection::Complete);
        }
        // The server and the part disagree: begin anew, once.
        remove_any(part)?;
        response = ask(0)?;
    }
    match response.status().as_u16() {
        200 => Ok(receiving(0, response)),
        404 => bail!("`{url}` does not exist"),
        _ => bail!("`{url}` answered with {}", response.status()),
    }
}

fn receiving(offset: u64, response: Response<ureq::Body>) -> Connection {
    let body = response.into_body();
    let total = body.content_length().map(|rest| offset.saturating_add(rest));
    Connection::Receiving { offset, total, body: Box::new(body) }
}

/// `0-99/200` of `Content-Range: bytes 0-99/200`.
fn content_range(response: &Response<ureq::Body>) -> Option<&str> {
    response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")
}

/// Writes a body to its place in the part. The number of bytes, and the inner error where the connection broke;
/// the outer error is one of the disk.
fn receive(
    name: &str,
    part: &Utf8Path,
    offset: u64,
    total: Option<u64>,
    body: ureq::Body,
    pace: &mut Pace,
) -> anyhow::Result<(u64, std::io::Result<()>)> {
    let folder = part.parent().unwrap_or(Utf8Path::new("."));
    create_folder(folder)?;
    let too_large = || format!("`{name}` has more than {}, which is refused", human_bytes(LARGEST));
    if let Some(total) = total {
        ensure!(total <= LARGEST, too_large());
        require_space(folder, total - offset, name)?;
    }
    let writing = || format!("failed to write `{part}`");
    // Opened for appending: after an interruption the file's length says how far it got. A server that does not
    // know ranges sends everything again.
    let mut file = File::options().create(true).append(true).open(part).with_context(writing)?;
    file.set_len(offset).with_context(writing)?;

    let bar = ui::byte_bar(&format!("downloading {name}"), total);
    bar.set_position(offset);
    bar.reset_eta();
    let mut reader = body.into_with_config().limit(u64::MAX).reader();
    let mut buffer = vec![0; 256 * 1024];
    let mut received = 0;
    let result = loop {
        match reader.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(count) => {
                file.write_all(&buffer[..count]).with_context(writing)?;
                received += count as u64;
                bar.inc(count as u64);
                if offset + received > LARGEST {
                    remove_any(part)?;
                    bail!(too_large());
                }
                pace.add(Instant::now(), count as u64)
                    .with_context(|| format!("the download of `{name}` is too slow"))
                    .hint("run the same task again: it goes on where this one stopped")?;
            }
            Err(error) => break Err(error),
        }
    };
    bar.finish_and_clear();
    Ok((received, result))
}
