//! A web server on loopback that does what a test tells it, request by request.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// How one request is answered.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    /// As RFC 9110 has it: all of the file, or the range that was asked for.
    Right,
    /// All of the file, whatever was asked for.
    Whole,
    /// As `Right`, and the connection ends after this many bytes of the body.
    CutAfter(usize),
    /// This status, with nothing.
    Status(u16),
    /// A part that nobody asked for, called `bytes 7-8/9`.
    OtherPart,
    /// A redirection to the same place.
    Around,
    /// All of the file, a byte at a time.
    Trickle,
}

/// Serves one file; the answers are given in their order, the last one again and again.
pub(crate) struct Server {
    /// `http://127.0.0.1:PORT`.
    pub(crate) url: String,
    requests: Receiver<Request>,
}

/// What a client asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) range: Option<String>,
}

impl Server {
    pub(crate) fn start(file: Vec<u8>, answers: &[Answer]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers = answers.to_vec();
        let (sender, requests) = channel();
        // Ends with the test program.
        std::thread::spawn(move || {
            for (index, stream) in listener.incoming().enumerate() {
                let answer = answers[index.min(answers.len() - 1)];
                let mut stream = stream.unwrap();
                let Some(request) = read_request(&stream) else { continue };
                let start = request.start();
                // Noted before it is answered, so that whoever has the answer finds it noted.
                if sender.send(request).is_err() {
                    return;
                }
                give_answer(&mut stream, &file, answer, start);
            }
        });
        Server { url, requests }
    }

    /// The `Range` of every request so far.
    pub(crate) fn ranges(&self) -> Vec<Option<String>> {
        self.requests.try_iter().map(|request| request.range).collect()
    }

    /// The path of every request so far.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.requests.try_iter().map(|request| request.path).collect()
    }
}

impl Request {
    /// Of `bytes=START-`.
    fn start(&self) -> Option<usize> {
        self.range.as_deref()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// One request for each connection. `None` where the client asked for nothing.
fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let range = headers.iter().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("range").then(|| value.to_owned())
    });
    Some(Request { path, range })
}

fn give_answer(stream: &mut TcpStream, file: &[u8], answer: Answer, start: Option<usize>) {
    let size = file.len();
    let (status, extra, body) = match (answer, start) {
        (Answer::Status(status), _) => (status, String::new(), &[][..]),
        (Answer::OtherPart, _) => (206, "Content-Range: bytes 7-8/9\r\n".to_owned(), &file[7..9]),
        (Answer::Around, _) => (302, "Location: /file\r\n".to_owned(), &[][..]),
        (Answer::Whole, _) | (_, None) => (200, String::new(), file),
        (_, Some(start)) if start >= size => (416, format!("Content-Range: bytes */{size}\r\n"), &[][..]),
        (_, Some(start)) => {
            (206, format!("Content-Range: bytes {start}-{}/{size}\r\n", size - 1), &file[start..])
        }
    };
    let head =
        format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{extra}Connection: close\r\n\r\n", body.len());
    let sent = match answer {
        Answer::CutAfter(bytes) => &body[..bytes.min(body.len())],
        _ => body,
    };
    if let Answer::Trickle = answer {
        let mut slowly = |byte: &u8| {
            std::thread::sleep(Duration::from_millis(5));
            stream.write_all(&[*byte])
        };
        // Until the client has enough of it.
        let _ = head.as_bytes().iter().chain(body).try_for_each(&mut slowly);
        return;
    }
    // A client may go away at any time.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(sent));
    let _ = stream.shutdown(Shutdown::Write);
}
