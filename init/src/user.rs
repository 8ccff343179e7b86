//! Who a process runs as: the OCI `User` resolved in the image's own `/etc/passwd` and `/etc/group`.
//!
//! The rules are docker's: a number is always an id and needs no entry, a name needs one, supplementary groups
//! belong to the user's name and only when no group was asked for. All pure; the caller reads the files.

/// A process's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// User id.
    pub(crate) uid: u32,
    /// Primary group id.
    pub(crate) gid: u32,
    /// Supplementary group ids, the primary one among them.
    pub(crate) groups: Vec<u32>,
    /// Home directory, `/` where the image knows none.
    pub(crate) home: String,
    /// Login shell of the image's entry, if it names one.
    pub(crate) shell: Option<String>,
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Lines that are no entries (comments, NIS markers, damage) are passed over, as libc does.
fn parse_passwd(line: &str) -> Option<Passwd<'_>> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let _password = fields.next()?;
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let _comment = fields.next();
    Some(Passwd { name, uid, gid, home: fields.next().unwrap_or(""), shell: fields.next().unwrap_or("") })
}

fn parse_group(line: &str) -> Option<Group<'_>> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let _password = fields.next()?;
    let gid = fields.next()?.parse().ok()?;
    Some(Group { name, gid, members: fields.next().unwrap_or("") })
}

/// Resolves `user`, `uid`, `user:group`, `uid:gid` or an empty string for root.
///
/// # Errors
/// A name without an entry, or a number that is no id, in docker's words.
pub(crate) fn resolve(specification: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (user, wanted_group) = match specification.split_once(':') {
        Some((user, group)) => (user, group),
        None => (specification, ""),
    };
    let number = match user {
        "" => Some(0),
        _ => id(user)?,
    };
    let entry = passwd
        .lines()
        .filter_map(parse_passwd)
        .find(|entry| number.map_or(entry.name == user, |uid| entry.uid == uid));

    let mut identity = Identity { uid: 0, gid: 0, groups: Vec::new(), home: "/".into(), shell: None };
    match (&entry, number) {
        (Some(entry), _) => {
            identity.uid = entry.uid;
            identity.gid = entry.gid;
            if !entry.home.is_empty() {
                identity.home = entry.home.into();
            }
            identity.shell = Some(entry.shell.to_owned()).filter(|shell| !shell.is_empty());
        }
        (None, Some(uid)) => identity.uid = uid,
        (None, None) => {
            return Err(format!("unable to find user `{user}`: no matching entry in /etc/passwd"));
        }
    }

    let groups = || group.lines().filter_map(parse_group);
    if !wanted_group.is_empty() {
        let number = id(wanted_group)?;
        let entry = groups().find(|entry| number.map_or(entry.name == wanted_group, |gid| entry.gid == gid));
        identity.gid = entry.map(|entry| entry.gid).or(number).ok_or_else(|| {
            format!("unable to find group `{wanted_group}`: no matching entry in /etc/group")
        })?;
    } else if let Some(user) = &entry {
        identity.groups = groups()
            .filter(|group| group.members.split(',').any(|member| member == user.name))
            .map(|group| group.gid)
            .collect();
    }
    if !identity.groups.contains(&identity.gid) {
        identity.groups.insert(0, identity.gid);
    }
    Ok(identity)
}

/// The id that a number names; `None` for a name. The highest id means "no change" to the kernel.
fn id(text: &str) -> Result<Option<u32>, String> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(id) if id < u32::MAX => Ok(Some(id)),
        _ => Err(format!("`{text}` is out of range for a user or group id")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n# a comment\n+::::::\nbroken:x:no:1::/:\n\
        nginx:x:101:102:nginx user,,,:/nonexistent:/bin/false\nweb:x:33:33::/var/www\n33:x:7:7::/seven:\n";
    const GROUP: &str = "root:x:0:\nnginx:x:102:\nadm:x:4:syslog,nginx\nssl:x:110:nginx\nempty::9:\n";

    fn ids(specification: &str) -> (u32, u32, Vec<u32>, String) {
        let identity = resolve(specification, PASSWD, GROUP).unwrap();
        (identity.uid, identity.gid, identity.groups, identity.home)
    }

    #[test]
    fn dockers_forms() {
        let of = |uid, gid, groups: &[u32], home: &str| (uid, gid, groups.to_vec(), home.to_owned());
        assert_eq!(ids(""), of(0, 0, &[0], "/root"));
        assert_eq!(ids("nginx"), of(101, 102, &[102, 4, 110], "/nonexistent"));
        assert_eq!(ids("101"), of(101, 102, &[102, 4, 110], "/nonexistent"));
        assert_eq!(ids("nginx:adm"), of(101, 4, &[4], "/nonexistent"));
        assert_eq!(ids("nginx:77"), of(101, 77, &[77], "/nonexistent"));
        assert_eq!(ids("4242"), of(4242, 0, &[0], "/"), "a number needs no entry");
        assert_eq!(ids("4242:4243"), of(4242, 4243, &[4243], "/"));
        assert_eq!(ids(":ssl"), of(0, 110, &[110], "/root"));
        assert_eq!(ids("33"), of(33, 33, &[33], "/var/www"), "a number is an id before it is a name");
    }

    #[test]
    fn an_image_without_files_has_root_and_numbers() {
        let identity = resolve("", "", "").unwrap();
        assert_eq!((identity.uid, identity.home.as_str(), identity.shell), (0, "/", None));
        assert_eq!(resolve("5:6", "", "").unwrap().gid, 6);
    }

    #[test]
    fn what_cannot_be_found_is_named() {
        let error = |specification| resolve(specification, PASSWD, GROUP).unwrap_err();
        assert_eq!(error("nobody"), "unable to find user `nobody`: no matching entry in /etc/passwd");
        assert_eq!(error("nginx:wheel"), "unable to find group `wheel`: no matching entry in /etc/group");
        assert_eq!(error("broken"), "unable to find user `broken`: no matching entry in /etc/passwd");
        assert_eq!(error("4294967295"), "`4294967295` is out of range for a user or group id");
        assert_eq!(error("0:99999999999"), "`99999999999` is out of range for a user or group id");
    }

    #[test]
    fn the_login_shell_comes_from_the_entry() {
        let shell = |user| resolve(user, PASSWD, GROUP).unwrap().shell;
        assert_eq!(shell("root").as_deref(), Some("/bin/bash"));
        assert_eq!(shell("web"), None);
    }
}
