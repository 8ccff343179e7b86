//! Who we are to a registry: the auth files of podman (containers-auth.json(5)) and docker (`config.json`), their
//! credential helpers, and the challenges that registries answer with (RFC 6750, RFC 7617).

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use ureq::http::Uri;

use crate::image::reference::{DEFAULT_REGISTRY, Reference};

/// What a registry may be shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user and a password.
    Basic {
        /// User name.
        user: String,
        /// Password.
        password: String,
    },
    /// A token that stands for them (docker's `identitytoken`).
    Identity(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Nothing secret goes into messages.
        match self {
            Credentials::Basic { user, .. } => write!(f, "Basic({user})"),
            Credentials::Identity(_) => f.write_str("Identity"),
        }
    }
}

impl Credentials {
    /// The value of the header `Authorization`, where a user and a password can stand in it.
    pub fn basic_header(&self) -> Option<String> {
        match self {
            Credentials::Basic { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Credentials::Identity(_) => None,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AuthFile {
    auths: BTreeMap<String, AuthEntry>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    auth: Option<String>,
    identitytoken: Option<String>,
}

/// Looks through the auth files for this image's registry. The first file that knows it counts.
pub fn find(reference: &Reference) -> anyhow::Result<Option<Credentials>> {
    for path in files(|name| std::env::var(name).ok().filter(|value| !value.is_empty())) {
        if !path.exists() {
            continue;
        }
        let text = crate::artifact::read_text(&path)?;
        let file: AuthFile =
            serde_json::from_str(&text).with_context(|| format!("failed to read `{path}`"))?;
        if let Some(credentials) =
            lookup(&file, reference).with_context(|| format!("failed to use `{path}`"))?
        {
            return Ok(Some(credentials));
        }
    }
    Ok(None)
}

fn files(variable: impl Fn(&str) -> Option<String>) -> Vec<Utf8PathBuf> {
    let home = variable("HOME").unwrap_or_default();
    let below_home = |path: &str| Utf8Path::new(&home).join(path);
    let user = rustix::process::getuid().as_raw();
    let runtime = variable("XDG_RUNTIME_DIR").unwrap_or_else(|| format!("/run/containers/{user}"));
    let config = variable("XDG_CONFIG_HOME").map_or_else(|| below_home(".config"), Utf8PathBuf::from);
    let docker = variable("DOCKER_CONFIG").map_or_else(|| below_home(".docker"), Utf8PathBuf::from);
    let chosen = variable("REGISTRY_AUTH_FILE").map(Utf8PathBuf::from);
    let usual = [
        Utf8PathBuf::from(&runtime).join("containers/auth.json"),
        Utf8PathBuf::from(format!("/run/containers/{user}/auth.json")),
        config.join("containers/auth.json"),
        docker.join("config.json"),
    ];
    chosen.into_iter().chain(usual).collect()
}

/// The most special entry for an image: `host/namespace/name`, `host/namespace`, `host`; docker's own with their URLs.
fn lookup(file: &AuthFile, reference: &Reference) -> anyhow::Result<Option<Credentials>> {
    let mut wanted = format!("{}/{}", reference.registry, reference.repository);
    loop {
        let entry = file.auths.iter().find(|(key, _)| normalized(key) == wanted);
        if let Some((key, entry)) = entry
            && let Some(credentials) = entry.credentials().with_context(|| format!("the entry `{key}`"))?
        {
            return Ok(Some(credentials));
        }
        match wanted.rfind('/') {
            Some(at) => wanted.truncate(at),
            None => break,
        }
    }
    let helper = file.cred_helpers.iter().find(|(key, _)| normalized(key) == reference.registry);
    let helper = helper.map(|(_, helper)| helper).or(file.creds_store.as_ref());
    helper.map_or(Ok(None), |helper| ask_helper(helper, &reference.registry))
}

/// Without what docker writes around a host: `https://index.docker.io/v1/` is `docker.io`.
fn normalized(key: &str) -> String {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let key = key.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
    match key.split_once('/').unwrap_or((key, "")) {
        ("index.docker.io" | "registry-1.docker.io", "") => DEFAULT_REGISTRY.to_owned(),
        ("index.docker.io" | "registry-1.docker.io", rest) => format!("{DEFAULT_REGISTRY}/{rest}"),
        _ => key.to_owned(),
    }
}

impl AuthEntry {
    fn credentials(&self) -> anyhow::Result<Option<Credentials>> {
        if let Some(token) = self.identitytoken.as_ref().filter(|token| !token.is_empty()) {
            return Ok(Some(Credentials::Identity(token.clone())));
        }
        let Some(auth) = self.auth.as_ref().filter(|auth| !auth.is_empty()) else { return Ok(None) };
        let pair = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = pair.context("its `auth` is not base64 of text")?;
        let (user, password) = pair.split_once(':').context("its `auth` is not `user:password`")?;
        let password = password.trim_end_matches('\0').to_owned();
        Ok(Some(Credentials::Basic { user: user.to_owned(), password }))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Runs `docker-credential-NAME get` (docker's credential helper protocol).
fn ask_helper(helper: &str, registry: &str) -> anyhow::Result<Option<Credentials>> {
    let program = format!("docker-credential-{helper}");
    let server = if registry == DEFAULT_REGISTRY { "https://index.docker.io/v1/" } else { registry };
    let output = duct::cmd!(&program, "get")
        .stdin_bytes(server)
        .stdout_capture()
        .stderr_capture()
        .unchecked()
        .run()
        .with_context(|| format!("failed to run `{program}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        // This is how a helper says that it knows nothing of a server.
        ensure!(said.contains("credentials not found"), "`{program}` failed: {said}");
        return Ok(None);
    }
    let answer: HelperAnswer = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("failed to read the answer of `{program}`"))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credentials::Identity(answer.secret),
        _ => Credentials::Basic { user: answer.username, password: answer.secret },
    }))
}

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from another address.
    Bearer {
        /// Where it is.
        realm: String,
        /// For whom.
        service: Option<String>,
        /// For what.
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads the header `WWW-Authenticate`; `None` where it asks for something else.
    pub fn parse(header: &str) -> Option<Challenge> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => Some(Challenge::Basic),
            "bearer" => {
                let mut parameters = parameters(rest);
                Some(Challenge::Bearer {
                    realm: parameters.remove("realm")?,
                    service: parameters.remove("service"),
                    scope: parameters.remove("scope"),
                })
            }
            _ => None,
        }
    }
}

/// Errors where a log-in must not be shown at the address that a registry names for tokens: it goes there over HTTPS, or
/// over plain HTTP to the registry's own host where the registry itself is spoken to in that way. `base` is how.
pub(super) fn check_realm(realm: &str, base: &str) -> anyhow::Result<()> {
    let wrong = || format!("the registry names `{realm}` for tokens, which is not an address");
    let uri: Uri = realm.parse().with_context(wrong)?;
    let own: Uri = base.parse().context("the registry's address cannot be understood")?;
    let is_same_host =
        uri.host().is_some_and(|host| own.host().is_some_and(|own| own.eq_ignore_ascii_case(host)));
    match (uri.scheme_str(), own.scheme_str()) {
        (Some("https"), _) => Ok(()),
        (Some("http"), Some("http")) if is_same_host => Ok(()),
        (Some("http"), _) => Err(anyhow::anyhow!(
            "the registry wants the log-in at `{realm}`, over plain HTTP; it was not sent"
        )),
        _ => bail!(wrong()),
    }
}

/// `name="value",name=value`; a quoted value may hold commas.
fn parameters(text: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        found.insert(name, value.trim().to_owned());
        rest = after;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> Reference {
        text.parse().unwrap()
    }

    fn user_for(json: &str, image: &str) -> Option<String> {
        match lookup(&serde_json::from_str(json).unwrap(), &reference(image)).unwrap()? {
            Credentials::Basic { user, .. } => Some(user),
            Credentials::Identity(token) => Some(token),
        }
    }

    #[test]
    fn the_most_special_entry_counts() {
        // base64 of `docker:x`, `host:x`, `space:x`
        let json = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"ZG9ja2VyOng="},
            "localhost:5000":{"auth":"aG9zdDp4"},"localhost:5000/team":{"auth":"c3BhY2U6eA=="},
            "quay.io":{"identitytoken":"tok"},"empty.io":{}}}"#;
        assert_eq!(user_for(json, "nginx").as_deref(), Some("docker"));
        assert_eq!(user_for(json, "localhost:5000/a").as_deref(), Some("host"));
        assert_eq!(user_for(json, "localhost:5000/team/a").as_deref(), Some("space"));
        assert_eq!(user_for(json, "quay.io/a/b").as_deref(), Some("tok"));
        assert_eq!(user_for(json, "empty.io/a"), None);
        assert_eq!(user_for(json, "other.io/a"), None);
        let wrong = serde_json::from_str(r#"{"auths":{"a.io":{"auth":"%"}}}"#).unwrap();
        assert!(lookup(&wrong, &reference("a.io/x")).is_err());
    }

    #[test]
    fn secrets_stay_out_of_messages() {
        let credentials = Credentials::Basic { user: "me".into(), password: "secret".into() };
        assert_eq!(format!("{credentials:?}"), "Basic(me)");
        assert_eq!(credentials.basic_header().unwrap(), "Basic bWU6c2VjcmV0");
    }

    #[test]
    fn a_log_in_is_shown_over_https_or_to_the_plain_registry_itself() {
        let (plain, tls) = ("http://localhost:5000", "https://registry.example");
        for (realm, base) in [
            ("https://auth.example/token", tls),
            ("https://auth.example/token", plain),
            ("http://localhost:5001/token", plain),
            ("HTTP://LOCALHOST/token", plain),
        ] {
            assert!(check_realm(realm, base).is_ok(), "{realm} {base}");
        }
        for (realm, base) in [
            ("http://auth.example/token", tls),
            ("http://registry.example/token", tls),
            ("http://localhost:5000/token", tls),
            ("http://auth.example/token", plain),
            ("http://localhost@auth.example/token", plain),
            ("http://localhost.auth.example/token", plain),
            ("ftp://localhost/token", plain),
            ("/token", plain),
            ("", plain),
        ] {
            assert!(check_realm(realm, base).is_err(), "{realm} {base}");
        }
    }

    #[test]
    fn challenges() {
        let bearer = Challenge::parse(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull,push""#,
        );
        let expected = Challenge::Bearer {
            realm: "https://auth.docker.io/token".into(),
            service: Some("registry.docker.io".into()),
            scope: Some("repository:library/nginx:pull,push".into()),
        };
        assert_eq!(bearer, Some(expected));
        assert_eq!(Challenge::parse(r#"basic realm="Registry""#), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(Challenge::parse("Bearer service=x"), None);
    }

    #[test]
    fn files_are_looked_for_where_podman_and_docker_keep_them() {
        let found = files(|name| match name {
            "HOME" => Some("/home/me".into()),
            "REGISTRY_AUTH_FILE" => Some("/x.json".into()),
            _ => None,
        });
        assert_eq!(found[0], "/x.json");
        assert!(found.iter().any(|path| path == "/home/me/.config/containers/auth.json"));
        assert!(found.iter().any(|path| path == "/home/me/.docker/config.json"));
    }
}
