//! Who is at the other end of a Unix socket: this user, or root. Nobody else is told anything, and nobody else is heard.

use std::io::{Error, ErrorKind};
use std::os::unix::net::UnixStream;

use rustix::fs::Uid;

/// Errors where the other end is another user's: the one that connected, or the one that listens (`SO_PEERCRED`, unix(7)).
pub fn check(stream: &UnixStream) -> std::io::Result<()> {
    let user = rustix::net::sockopt::socket_peercred(stream)?.uid;
    if is_trusted(user, rustix::process::geteuid()) {
        return Ok(());
    }
    let cause = format!("the other end of the socket belongs to another user ({})", user.as_raw());
    Err(Error::new(ErrorKind::PermissionDenied, cause))
}

fn is_trusted(user: Uid, ours: Uid) -> bool {
    user == ours || user.is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_user_itself_are_trusted_and_root_trusts_nobody_else() {
        let user = |number| Uid::from_raw(number);
        assert!(is_trusted(user(1000), user(1000)) && is_trusted(user(0), user(1000)));
        assert!(!is_trusted(user(1001), user(1000)) && !is_trusted(user(1000), user(0)));
        let (ours, _theirs) = UnixStream::pair().unwrap();
        check(&ours).unwrap();
    }
}
