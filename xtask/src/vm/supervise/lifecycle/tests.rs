use super::*;

const LIMITS: Limits =
    Limits { start: secs(60), run: Some(secs(100)), grace: secs(10), answer: secs(5), end: secs(15) };

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A machine at some time, counted from its launch.
struct Life {
    life: Lifecycle,
    launched: Instant,
}

impl Life {
    fn booting(has_agent: bool, run: Option<Duration>) -> Life {
        let launched = Instant::now();
        Life { life: Lifecycle::launched(launched, Limits { run, ..LIMITS }, has_agent), launched }
    }

    fn running() -> Life {
        let mut life = Life::booting(true, None);
        life.life.main_started();
        life
    }

    fn at(&self, seconds: u64) -> Instant {
        self.launched + secs(seconds)
    }

    /// The next deadline, in seconds from the launch.
    fn deadline(&self) -> Option<u64> {
        self.life.deadline().map(|deadline| (deadline - self.launched).as_secs())
    }

    /// Nothing happens a moment before, and this at that time.
    fn nothing_until(&mut self, seconds: u64, actions: &[Action]) {
        assert_eq!(self.deadline(), Some(seconds));
        assert_eq!(self.life.tick(self.at(seconds) - Duration::from_millis(1)), []);
        assert_eq!(self.life.tick(self.at(seconds)), actions);
    }

    fn stop(&mut self, seconds: u64, signal: i32, grace: u64) -> Vec<Action> {
        self.life.stop(self.at(seconds), signal, secs(grace))
    }

    fn verdict(&mut self, seconds: u64, verdict: Verdict) -> Vec<Action> {
        self.life.verdict(self.at(seconds), verdict)
    }

    fn main_ended(&mut self, seconds: u64, code: u8) {
        self.life.main_ended(self.at(seconds), Outcome::Exited(code));
    }

    fn ends(self) -> Outcome {
        self.life.qemu_ended(None)
    }
}

fn shutdown(signal: i32, grace_seconds: u32) -> Vec<Action> {
    vec![Action::Tell(Frame::new(MACHINE_CHANNEL, Message::Shutdown { signal, grace_seconds }))]
}

fn ping(number: u32) -> Vec<Action> {
    vec![Action::Tell(Frame::new(MACHINE_CHANNEL, Message::Ping(number)))]
}

fn failed(cause: &str) -> Outcome {
    Outcome::Failed { cause: cause.into() }
}

fn panic() -> Verdict {
    Verdict::Failed("the guest's kernel panicked".into())
}

fn halt() -> Verdict {
    Verdict::Halted("the guest switched itself off".into())
}

#[test]
fn a_guest_that_never_reaches_its_command_is_killed_and_named() {
    let mut life = Life::booting(true, None);
    life.nothing_until(60, &[Action::Kill]);
    assert_eq!(life.ends(), failed("the guest did not reach its command within 60 s"));
}

#[test]
fn a_command_that_runs_has_no_limit_but_the_one_that_was_asked_for() {
    let mut life = Life::running();
    assert_eq!(life.deadline(), None);
    assert_eq!(life.life.tick(life.at(1_000_000)), []);
    let mut endless = Life::booting(true, Some(Duration::MAX));
    endless.life.main_started();
    assert_eq!(endless.deadline(), None);
}

#[test]
fn a_late_word_of_the_start_changes_no_later_phase() {
    let mut life = Life::running();
    life.stop(1, 15, 2);
    life.life.main_started();
    life.nothing_until(8, &[Action::Kill]);
    life.life.main_started();
    life.nothing_until(18, &[Action::Abandon]);
}

#[test]
fn a_qemu_that_cannot_be_killed_is_given_up() {
    let mut life = Life::booting(true, None);
    life.nothing_until(60, &[Action::Kill]);
    assert_eq!(life.life.signal(life.at(61), 2), [Action::Kill]);
    assert_eq!(life.stop(62, 9, 0), [Action::Kill]);
    life.main_ended(63, 0);
    assert_eq!(life.verdict(64, panic()), []);
    life.nothing_until(70, &[Action::Abandon]);
    assert_eq!(life.deadline(), None);
    assert_eq!(life.life.tick(life.at(1000)), []);
    assert_eq!(life.ends(), failed("the guest did not reach its command within 60 s"));
}

#[test]
fn the_first_signal_asks_and_the_second_kills() {
    let mut life = Life::running();
    assert_eq!(life.life.signal(life.at(1), 2), shutdown(2, 10));
    assert_eq!(life.deadline(), Some(16));
    assert_eq!(life.life.signal(life.at(2), 15), [Action::Kill]);
    assert_eq!(life.ends(), Outcome::Killed(15));
}

#[test]
fn a_signal_where_nobody_could_hear_it_kills_at_once() {
    for has_agent in [true, false] {
        let mut life = Life::booting(has_agent, None);
        assert_eq!(life.life.signal(life.at(1), 2), [Action::Kill]);
        assert_eq!(life.ends(), Outcome::Killed(2));
        for (signal, then) in [(0, 15), (3, 3), (9, 9)] {
            let mut life = Life::booting(has_agent, None);
            assert_eq!(life.stop(1, signal, 30), [Action::Kill]);
            assert_eq!(life.ends(), Outcome::Killed(then));
        }
    }
    let mut life = Life::running();
    life.main_ended(1, 4);
    assert_eq!(life.life.signal(life.at(2), 2), [Action::Kill]);
    assert_eq!(life.ends(), Outcome::Exited(4), "it had ended by itself");
}

#[test]
fn a_stopped_process_keeps_its_own_exit_code() {
    let mut life = Life::running();
    life.stop(1, 15, 10);
    life.main_ended(2, 3);
    life.nothing_until(17, &[Action::Kill]);
    assert_eq!(life.ends(), Outcome::Exited(3));
}

#[test]
fn a_guest_that_ignores_a_request_to_end_is_killed_soon_after_its_grace() {
    let mut life = Life::running();
    assert_eq!(life.stop(1, 0, 3), shutdown(0, 3));
    life.nothing_until(9, &[Action::Kill]);
    assert_eq!(life.ends(), failed("the guest did not end when it was asked to"));
    let mut life = Life::running();
    assert_eq!(life.stop(1, 9, 3), [Action::Kill]);
    assert_eq!(life.ends(), Outcome::Killed(9));
}

#[test]
fn of_several_requests_the_one_that_ends_first_counts() {
    let mut life = Life::running();
    assert_eq!(life.stop(1, 15, 100), shutdown(15, 100));
    assert_eq!(life.stop(2, 3, 10), shutdown(3, 10));
    assert_eq!(life.deadline(), Some(17));
    assert_eq!(life.stop(4, 15, 1000), shutdown(15, 8));
    assert_eq!(life.life.stop(life.at(5) + Duration::from_millis(1), 15, secs(1000)), shutdown(15, 7));
    life.nothing_until(17, &[Action::Kill]);

    let mut life = Life::running();
    life.main_ended(1, 0);
    assert_eq!(life.stop(2, 0, 1000), shutdown(0, 1000));
    life.nothing_until(16, &[Action::Kill]);
    assert_eq!(life.ends(), Outcome::Exited(0));
}

#[test]
fn a_timeout_stops_politely_then_hard() {
    let mut life = Life::booting(true, Some(secs(30)));
    life.life.main_started();
    life.nothing_until(30, &shutdown(0, 10));
    life.nothing_until(45, &[Action::Kill]);
    assert_eq!(life.ends(), Outcome::TimedOut { limit: secs(30) });
}

#[test]
fn a_timeout_kills_what_cannot_be_asked() {
    for has_agent in [true, false] {
        let mut life = Life::booting(has_agent, Some(secs(30)));
        life.nothing_until(30, &[Action::Kill]);
        assert_eq!(life.ends(), Outcome::TimedOut { limit: secs(30) });
    }
}

#[test]
fn a_timeout_holds_while_a_longer_grace_runs() {
    let mut life = Life::booting(true, Some(secs(30)));
    life.life.main_started();
    life.stop(1, 15, 1000);
    life.nothing_until(30, &shutdown(0, 10));
    life.nothing_until(45, &[Action::Kill]);
    assert_eq!(life.ends(), Outcome::TimedOut { limit: secs(30) });
}

#[test]
fn a_command_that_ended_in_time_has_its_own_limit() {
    let mut life = Life::booting(true, Some(secs(30)));
    life.life.main_started();
    life.main_ended(29, 6);
    life.nothing_until(30, &[]);
    life.nothing_until(44, &[Action::Kill]);
    assert_eq!(life.ends(), Outcome::Exited(6));
}

#[test]
fn a_panic_explains_the_end_of_qemu() {
    for (has_agent, question) in [(true, ping(1)), (false, vec![])] {
        let mut life = Life::booting(has_agent, None);
        let cause = "the kernel found no root file system";
        assert_eq!(life.verdict(1, Verdict::Failed(cause.into())), question);
        assert_eq!(life.verdict(2, panic()), [], "one question at a time; the first cause stays");
        assert_eq!(life.ends(), failed(cause));
    }
    let mut life = Life::running();
    life.verdict(1, panic());
    assert_eq!(life.life.qemu_ended(Some("QEMU failed".into())), failed("QEMU failed"));
}

#[test]
fn a_panic_that_is_only_said_is_none() {
    let mut life = Life::running();
    assert_eq!(life.verdict(1, panic()), ping(1));
    life.life.console_spoke();
    assert_eq!(life.deadline(), Some(6), "with an agent, words on the console say nothing against it");
    life.life.answered(1);
    assert_eq!(life.deadline(), None);
    assert_eq!(life.verdict(2, halt()), ping(2));
    life.life.answered(1);
    assert_eq!(life.deadline(), Some(7), "a late answer to an earlier question proves nothing");
    life.life.answered(2);
    life.main_ended(3, 0);
    assert_eq!(life.ends(), Outcome::Exited(0));

    let mut life = Life::running();
    life.verdict(1, panic());
    life.life.answered(1);
    assert_eq!(life.ends(), failed("the guest ended the machine before its command had ended"));
}

#[test]
fn a_guest_that_does_not_answer_has_failed_as_its_console_says() {
    for verdict in [panic(), halt()] {
        let (Verdict::Failed(cause) | Verdict::Halted(cause)) = verdict.clone() else { unreachable!() };
        let mut life = Life::running();
        assert_eq!(life.verdict(1, verdict), ping(1));
        life.nothing_until(6, &[Action::Kill]);
        assert_eq!(life.ends(), failed(&cause));
    }
}

#[test]
fn words_on_the_console_cut_no_end_short() {
    let mut life = Life::running();
    life.verdict(1, panic());
    life.main_ended(2, 5);
    assert_eq!(life.verdict(3, panic()), []);
    life.nothing_until(17, &[Action::Kill]);
    assert_eq!(life.ends(), Outcome::Exited(5));
}

#[test]
fn a_system_that_switches_itself_off_as_it_was_asked_was_ended_by_that_signal() {
    let mut life = Life::running();
    life.stop(1, 0, 10);
    assert_eq!(life.ends(), Outcome::Killed(15));
    let mut life = Life::running();
    life.stop(1, 37, 10);
    life.stop(2, 2, 10);
    assert_eq!(life.verdict(3, halt()), ping(1));
    life.nothing_until(8, &[Action::Kill]);
    assert_eq!(life.ends(), Outcome::Killed(37));
    let mut life = Life::running();
    life.stop(1, 37, 10);
    life.verdict(3, panic());
    life.nothing_until(8, &[Action::Kill]);
    assert_eq!(life.ends(), failed("the guest's kernel panicked"));
}

#[test]
fn a_foreign_init_ends_with_the_code_it_prints_or_zero() {
    assert_eq!(Life::booting(false, None).ends(), Outcome::Exited(0));
    let mut life = Life::booting(false, None);
    life.verdict(1, Verdict::Exited(9));
    life.nothing_until(16, &[Action::Kill]);
    assert_eq!(life.ends(), Outcome::Exited(9));
    // With an agent the code is the agent's to say.
    let mut life = Life::running();
    assert_eq!(life.verdict(1, Verdict::Exited(9)), []);
    assert_eq!(life.verdict(1, Verdict::Alive), []);
    assert_eq!(life.deadline(), None);
}

#[test]
fn a_foreign_init_that_halts_is_silent_and_has_ended() {
    let mut life = Life::booting(false, None);
    assert_eq!(life.verdict(1, halt()), []);
    life.life.console_spoke();
    assert_eq!(life.deadline(), None, "it was only said");
    life.verdict(2, halt());
    life.nothing_until(7, &[Action::Kill]);
    assert_eq!(life.ends(), Outcome::Exited(0));

    let mut life = Life::booting(false, None);
    life.verdict(1, panic());
    life.life.console_spoke();
    life.nothing_until(6, &[]);
    assert_eq!(life.ends(), Outcome::Exited(0), "a kernel that has panicked ends at once");
}

#[test]
fn an_agent_that_cannot_be_understood_ends_the_machine() {
    let mut life = Life::running();
    assert_eq!(life.life.agent_failed(life.at(3), "nonsense".into()), [Action::Kill]);
    life.nothing_until(13, &[Action::Abandon]);
    assert_eq!(life.ends(), failed("nonsense"));
}

#[test]
fn an_end_without_a_word_is_named_by_how_far_the_guest_came() {
    assert_eq!(Life::booting(true, None).ends(), failed("the guest ended before it reached its command"));
    assert_eq!(Life::running().ends(), failed("the guest ended the machine before its command had ended"));
    let complaint = || Some("QEMU failed: no such device".to_owned());
    for has_agent in [true, false] {
        let life = Life::booting(has_agent, None);
        assert_eq!(life.life.qemu_ended(complaint()), failed("QEMU failed: no such device"));
    }
    let mut life = Life::running();
    life.main_ended(1, 7);
    assert_eq!(life.life.qemu_ended(complaint()), Outcome::Exited(7));
}
