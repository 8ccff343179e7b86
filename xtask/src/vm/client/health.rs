//! Runs an image's health check in its machine, by docker's rules, and notes what it finds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use init::boot_config::Command;
use init::protocol::{Message, Program, Start};

use super::{CHANNEL, Client, Silence};
use crate::image::config::Healthcheck;
use crate::vm::record::run_dir::RunDir;
use crate::vm::record::{Health, Record};

/// Between checks, and for one, where the image does not say (Dockerfile reference, `HEALTHCHECK`).
const DEFAULT_TIME: Duration = Duration::from_secs(30);
/// Failures in a row, where the image does not say.
const DEFAULT_RETRIES: u32 = 3;

/// A health check with docker's defaults in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    argv: Vec<String>,
    interval: Duration,
    timeout: Duration,
    start_period: Duration,
    retries: u32,
}

impl Check {
    /// What an image asks for; `None` where it asks for nothing.
    pub fn of(image: &Healthcheck) -> Option<Check> {
        let argv = match image.test.split_first() {
            Some((kind, argv)) if kind == "CMD" && !argv.is_empty() => argv.to_vec(),
            Some((kind, [script])) if kind == "CMD-SHELL" => {
                vec!["/bin/sh".into(), "-c".into(), script.clone()]
            }
            _ => return None,
        };
        let time = |nanoseconds: i64| {
            u64::try_from(nanoseconds).ok().filter(|time| *time > 0).map(Duration::from_nanos)
        };
        Some(Check {
            argv,
            interval: time(image.interval).unwrap_or(DEFAULT_TIME),
            timeout: time(image.timeout).unwrap_or(DEFAULT_TIME),
            start_period: time(image.start_period).unwrap_or_default(),
            retries: u32::try_from(image.retries).ok().filter(|n| *n > 0).unwrap_or(DEFAULT_RETRIES),
        })
    }

    /// What is known after one more check. `failures` counts those in a row.
    fn judge(&self, before: Health, succeeded: bool, age: Duration, failures: &mut u32) -> Health {
        if succeeded {
            *failures = 0;
            return Health::Healthy;
        }
        if before == Health::Starting && age < self.start_period {
            return Health::Starting;
        }
        *failures += 1;
        if *failures >= self.retries { Health::Unhealthy } else { before }
    }
}

/// Checks a machine whose main process has just started, until it ends. A check that cannot be run is one that failed.
pub fn watch(check: Check, run_dir: RunDir, record: Arc<Record>) {
    let note = {
        let record = Arc::clone(&record);
        move |health| record.update(|state| state.health = Some(health))
    };
    note(Health::Starting);
    let checking = std::thread::Builder::new().spawn(move || {
        let started = Instant::now();
        let (mut health, mut failures) = (Health::Starting, 0);
        loop {
            std::thread::sleep(check.interval);
            let succeeded = probe(&check, &run_dir).unwrap_or(false);
            let now = check.judge(health, succeeded, started.elapsed(), &mut failures);
            if now != health {
                health = now;
                record.update(|state| state.health = Some(health));
            }
        }
    });
    if checking.is_err() {
        note(Health::Unhealthy);
    }
}

/// Whether one check succeeds. Errors where it cannot be run.
fn probe(check: &Check, run_dir: &RunDir) -> anyhow::Result<bool> {
    let command = Command { argv: check.argv.clone(), env: vec![], cwd: String::new(), user: String::new() };
    let deadline = Instant::now() + check.timeout;
    let mut client = Client::connect_within(run_dir, check.timeout)?;
    let speaker = client.speaker();
    let start = Start { program: Program::Command(command), tty: None, stdin: false };
    if client.start(start, check.timeout)?.is_err() {
        return Ok(false);
    }
    loop {
        match client.next_frame(Some(deadline)) {
            Ok(frame) => match frame.message {
                Message::Exited { code } if frame.channel == CHANNEL => return Ok(code == 0),
                Message::Data(stream, bytes) => {
                    speaker.say(CHANNEL, Message::Credit(stream, bytes.len() as u32));
                }
                _ => {}
            },
            // The process ends with the connection.
            Err(Silence::Timeout | Silence::Ended) => return Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(test: &[&str]) -> Healthcheck {
        Healthcheck { test: test.iter().map(|word| (*word).to_owned()).collect(), ..Default::default() }
    }

    #[test]
    fn dockers_forms_and_defaults() {
        let check = Check::of(&image(&["CMD-SHELL", "curl -f localhost"])).unwrap();
        assert_eq!(check.argv, ["/bin/sh", "-c", "curl -f localhost"]);
        assert_eq!((check.interval, check.timeout, check.retries), (DEFAULT_TIME, DEFAULT_TIME, 3));
        assert_eq!(Check::of(&image(&["CMD", "a", "b"])).unwrap().argv, ["a", "b"]);
        for test in [&["NONE"][..], &[], &["CMD"]] {
            assert_eq!(Check::of(&image(test)), None, "{test:?}");
        }
    }

    #[test]
    fn failures_count_in_a_row_and_not_while_it_starts() {
        let mut wanted = image(&["CMD", "x"]);
        wanted.start_period = 10_000_000_000;
        wanted.retries = 2;
        let check = Check::of(&wanted).unwrap();
        let (early, late) = (Duration::from_secs(1), Duration::from_secs(11));
        let mut failures = 0;
        let mut health = Health::Starting;
        for (succeeded, age, then) in [
            (false, early, Health::Starting),
            (false, early, Health::Starting),
            (false, late, Health::Starting),
            (true, late, Health::Healthy),
            (false, late, Health::Healthy),
            (true, late, Health::Healthy),
            (false, late, Health::Healthy),
            (false, late, Health::Unhealthy),
            (true, late, Health::Healthy),
        ] {
            health = check.judge(health, succeeded, age, &mut failures);
            assert_eq!(health, then);
        }
    }
}
