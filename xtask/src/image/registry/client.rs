//! HTTP to one registry, for one repository: tokens, retries, and what a refusal means (OCI distribution spec).

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use serde::Deserialize;
use ureq::http::{Response, StatusCode, header};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};

use super::auth::{self, Challenge, Credentials};
use super::trust::{is_about_trust, is_loopback, root_certificates};
use crate::error::hinted;
use crate::image::reference::{DEFAULT_REGISTRY, Reference};
use crate::pace::{Slowest, read_all};

/// Answers are JSON of at most this many bytes, manifests included.
const MAX_ANSWER: u64 = crate::image::archive::MAX_DOCUMENT;

/// How to speak to registries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Check certificates; without it plain HTTP will do as well.
    pub tls_verify: bool,
    /// How often a request is tried before it has failed.
    pub attempts: u32,
    /// The wait after the first try that failed; it doubles each time.
    pub first_wait: Duration,
    /// How long a connection may be silent.
    pub silence: Duration,
    /// How slowly a body may come.
    pub slowest: Slowest,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            tls_verify: true,
            attempts: 5,
            first_wait: Duration::from_millis(500),
            silence: Duration::from_secs(30),
            slowest: Slowest::default(),
        }
    }
}

/// A registry may ask for a longer wait than ours; longer than this is refused.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// One repository of one registry.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    reference: Reference,
    credentials: Option<Credentials>,
    options: Options,
    session: Mutex<Session>,
}

#[derive(Debug, Clone)]
struct Session {
    /// `https://registry-1.docker.io`.
    base: String,
    /// Plain HTTP may be tried where TLS does not work.
    may_fall_back: bool,
    authorization: Option<String>,
}

/// Why a try failed, and whether another one may do better.
enum Failure {
    Final(anyhow::Error),
    Passing(anyhow::Error, Option<Duration>),
}

impl Client {
    /// Prepares to speak to an image's registry; nothing is sent yet.
    pub fn new(reference: &Reference, options: Options) -> anyhow::Result<Client> {
        let tls = TlsConfig::builder()
            .root_certs(root_certificates(&reference.registry)?)
            .disable_verification(!options.tls_verify)
            .build();
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .tls_config(tls)
            .user_agent(concat!("microvm-workbench/", env!("CARGO_PKG_VERSION")))
            // A blob's digest is that of its bytes as they are.
            .accept_encoding("identity")
            .timeout_resolve(Some(options.silence))
            .timeout_connect(Some(options.silence))
            .timeout_send_request(Some(options.silence))
            .timeout_recv_response(Some(options.silence))
            .timeout_per_read(Some(options.silence))
            .build()
            .new_agent();
        let host = match reference.registry.as_str() {
            DEFAULT_REGISTRY => "registry-1.docker.io",
            other => other,
        };
        // Docker's own exception for registries on this machine.
        let may_fall_back = !options.tls_verify || is_loopback(host);
        let session = Session { base: format!("https://{host}"), may_fall_back, authorization: None };
        let credentials = auth::find(reference)?;
        Ok(Client { agent, reference: reference.clone(), credentials, options, session: Mutex::new(session) })
    }

    /// The image that this client was made for.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// How often a download may be taken up again without progress.
    pub fn attempts(&self) -> u32 {
        self.options.attempts
    }

    /// How slowly a body may come.
    pub fn slowest(&self) -> Slowest {
        self.options.slowest
    }

    /// Gets `/v2/REPOSITORY/…`, trying again where that may help. Errors where the answer is not a success.
    pub fn get(&self, path: &str, headers: &[(&str, &str)], what: &str) -> anyhow::Result<Response<Body>> {
        let mut attempt = 1;
        loop {
            let failure = match self.attempt(path, headers, what) {
                Ok(response) => return Ok(response),
                Err(failure) => failure,
            };
            match failure {
                Failure::Final(error) => return Err(error),
                Failure::Passing(error, _) if attempt >= self.options.attempts => {
                    return Err(error.context(format!("gave up after {attempt} attempts")));
                }
                Failure::Passing(_, wait) => {
                    self.wait(attempt, wait);
                    attempt += 1;
                }
            }
        }
    }

    /// Waits before another try.
    pub fn wait(&self, attempt: u32, asked_for: Option<Duration>) {
        let ours = self.options.first_wait * 2_u32.saturating_pow(attempt.saturating_sub(1).min(6));
        std::thread::sleep(asked_for.unwrap_or(ours).min(LONGEST_WAIT));
    }

    fn session(&self) -> Session {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Session)) {
        change(&mut self.session.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn attempt(&self, path: &str, headers: &[(&str, &str)], what: &str) -> Result<Response<Body>, Failure> {
        let mut response = self.send(path, headers)?;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(authorization) = self.authorize(&response)?
        {
            // Also where a token has expired in the middle of a pull.
            self.change(|session| session.authorization = Some(authorization));
            response = self.send(path, headers)?;
            if response.status() == StatusCode::UNAUTHORIZED {
                self.change(|session| session.authorization = None);
            }
        }
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response, what)) }
    }

    /// Sends a request in the session's scheme, which it settles with the first answer.
    fn send(&self, path: &str, headers: &[(&str, &str)]) -> Result<Response<Body>, Failure> {
        let session = self.session();
        let result = match self.ask(&session, &session.base, path, headers) {
            // A certificate that nobody vouches for is no reason to go without any.
            Err(error) if session.may_fall_back && !is_about_trust(&error) => {
                let plain = session.base.replacen("https:", "http:", 1);
                let answered = self.ask(&session, &plain, path, headers);
                if answered.is_ok() {
                    self.change(|session| session.base = plain);
                }
                answered
            }
            result => result,
        };
        if result.is_ok() {
            // This scheme works: no falling back in the middle.
            self.change(|session| session.may_fall_back = false);
        }
        result.map_err(|error| {
            unreachable(error, format!("failed to reach the registry `{}`", self.reference.registry))
        })
    }

    fn ask(
        &self,
        session: &Session,
        base: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response<Body>, ureq::Error> {
        let mut request = self.agent.get(format!("{base}/v2/{}/{path}", self.reference.repository));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(authorization) = &session.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        request.call()
    }

    /// What to show the registry after it asked; `None` where it cannot be had.
    fn authorize(&self, refused: &Response<Body>) -> Result<Option<String>, Failure> {
        let challenges = refused.headers().get_all(header::WWW_AUTHENTICATE).iter();
        let mut challenges = challenges.filter_map(|value| Challenge::parse(value.to_str().ok()?));
        match challenges.next() {
            Some(Challenge::Basic) => Ok(self.credentials.as_ref().and_then(Credentials::basic_header)),
            Some(Challenge::Bearer { realm, service, scope }) => {
                self.token(&realm, service.as_deref(), scope.as_deref()).map(Some)
            }
            None => Ok(None),
        }
    }

    /// Asks the token server (distribution's token and OAuth2 specifications).
    fn token(&self, realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        if self.credentials.is_some() {
            auth::check_realm(realm, &self.session().base).map_err(Failure::Final)?;
        }
        let pull = format!("repository:{}:pull", self.reference.repository);
        let scope = scope.unwrap_or(&pull);
        let response = match &self.credentials {
            // The log-in goes nowhere else. (A header with one is dropped when an answer leads elsewhere.)
            Some(Credentials::Identity(token)) => {
                self.agent.post(realm).config().max_redirects(0).build().send_form([
                    ("grant_type", "refresh_token"),
                    ("service", service.unwrap_or_default()),
                    ("client_id", "microvm-workbench"),
                    ("scope", scope),
                    ("refresh_token", token),
                ])
            }
            other => {
                let mut request = self.agent.get(realm).query("scope", scope);
                if let Some(service) = service {
                    request = request.query("service", service);
                }
                if let Some(basic) = other.as_ref().and_then(Credentials::basic_header) {
                    request = request.header(header::AUTHORIZATION, basic);
                }
                request.call()
            }
        };
        let mut response =
            response.map_err(|error| unreachable(error, format!("failed to reach `{realm}` for a token")))?;
        if !response.status().is_success() {
            return Err(self.refusal(response, "a token"));
        }
        let mut read = || -> anyhow::Result<String> {
            let text = read_all(response.body_mut().as_reader(), MAX_ANSWER, self.options.slowest)?;
            let token: Token = serde_json::from_slice(&text)?;
            Ok(format!("Bearer {}", token.token.or(token.access_token).context("it has no token in it")?))
        };
        read().with_context(|| format!("failed to read the answer of `{realm}`")).map_err(Failure::Final)
    }

    /// Puts a refusal into words: what was asked for, what the registry said, what can be done.
    fn refusal(&self, mut response: Response<Body>, what: &str) -> Failure {
        let status = response.status();
        let wait =
            response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let said = read_all(response.body_mut().as_reader(), 64 * 1024, self.options.slowest);
        let said = error_message(&String::from_utf8_lossy(&said.unwrap_or_default()))
            .map(|message| format!(": {message}"))
            .unwrap_or_default();
        let Reference { registry, .. } = &self.reference;
        let login = match &self.credentials {
            None => format!("log in with `podman login {registry}` or `docker login {registry}`"),
            Some(_) => format!("the saved login for `{registry}` may be wrong: log in again"),
        };
        let number = status.as_u16();
        let error = anyhow!("the registry `{registry}` answers {number}{said} for {what}");
        match number {
            401 => Failure::Final(hinted(error, login)),
            403 => Failure::Final(hinted(error, format!("the image may be private: {login}"))),
            404 => {
                let step = format!("see that `{}` is right; it may also be private", self.reference);
                Failure::Final(hinted(error, step))
            }
            429 => Failure::Passing(hinted(error, login), wait.map(Duration::from_secs)),
            408 | 500..=599 => Failure::Passing(error, wait.map(Duration::from_secs)),
            _ => Failure::Final(error),
        }
    }
}

/// There is no answer; `what` says whose. Trying again helps where it may be for a moment.
fn unreachable(error: ureq::Error, what: String) -> Failure {
    let hint = if is_about_trust(&error) {
        "put the registry's certificate into `/etc/containers/certs.d/HOST/ca.crt`, or trust it blindly with `--tls-verify=false`"
    } else if is_about_name(&error) {
        // The resolver has tried several times by itself.
        "see that the name is right and that this host has a network; archives and local images need none"
    } else if matches!(error, ureq::Error::BadUri(_)) {
        return Failure::Final(anyhow::Error::new(error).context(what));
    } else {
        return Failure::Passing(anyhow::Error::new(error).context(what), None);
    };
    Failure::Final(hinted(anyhow::Error::new(error).context(what), hint))
}

/// The server's name has no address.
fn is_about_name(error: &ureq::Error) -> bool {
    // The standard library has no kind of error for getaddrinfo's, only these words.
    matches!(error, ureq::Error::HostNotFound)
        || error.to_string().contains("failed to lookup address information")
}

/// As much of a message is told.
const LONGEST_MESSAGE: usize = 300;

/// The first message of `{"errors":[{"code":…,"message":…}]}`, or a short answer as it is.
fn error_message(body: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        code: Option<String>,
        message: Option<String>,
    }
    match serde_json::from_str::<Errors>(body) {
        Ok(Errors { errors }) => errors
            .into_iter()
            .find_map(|entry| entry.message.or(entry.code))
            .map(|message| message.chars().take(LONGEST_MESSAGE).collect()),
        Err(_) => {
            let line = body.trim();
            let is_plain = !line.is_empty() && line.len() < 200 && !line.contains(['<', '\n', '{']);
            is_plain.then(|| line.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_says_is_found() {
        let json = r#"{"errors":[{"code":"DENIED","message":"requested access is denied","detail":[]}]}"#;
        assert_eq!(error_message(json).as_deref(), Some("requested access is denied"));
        assert_eq!(error_message("slow down\n").as_deref(), Some("slow down"));
        assert_eq!(error_message("<html>"), None);
    }
}
