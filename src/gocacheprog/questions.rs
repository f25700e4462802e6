//! What the daemon has been asked and told and has not answered yet, and until when we wait.
//!
//! State and its rules, without I/O: `remote` moves the frames. Nobody waits here but the threads
//! that have nothing else to do.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::wire::go::{Entry, Frame};

/// Frames that wait to be written; beyond that the daemon is not keeping up and is not asked.
const OUTBOX_MAX: usize = 8 << 10;
/// What a daemon that has missed a deadline gets to answer everything else that it is asked.
const HUNG_GRACE: Duration = Duration::from_secs(1);

/// Whether there is a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Perhaps until then: what is asked waits.
    Coming {
        until: Duration,
    },
    Up,
    Down,
}

/// A get that go waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) id: i64,
    pub(super) action: [u8; 32],
    asked: Duration,
    deadline: Duration,
}

/// A put that the daemon has not confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unacked {
    pub(super) id: u64,
    pub(super) action: [u8; 32],
    pub(super) entry: Entry,
    /// The output, where the daemon cannot see it.
    pub(super) body: Option<PathBuf>,
}

/// What to write next.
#[derive(Debug)]
pub(super) enum Outgoing {
    Frames(Vec<u8>),
    Body(Unacked),
    /// Nothing new; go on with the body at hand.
    Nothing,
    End,
}

/// What is left of a connection that is gone.
#[derive(Debug, Default)]
pub(super) struct Lost {
    pub(super) questions: Vec<Question>,
    pub(super) puts: Vec<Unacked>,
}

#[derive(Debug)]
pub(super) struct Questions {
    state: Mutex<State>,
    /// Something to write, or no connection to write to.
    outgoing: Condvar,
    /// An earlier deadline, or the end.
    timing: Condvar,
    /// The link, or what is not answered yet, has changed.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    link: Link,
    questions: HashMap<u64, Question>,
    puts: HashMap<u64, Unacked>,
    outbox: Vec<u8>,
    outbox_frames: usize,
    bodies: VecDeque<Unacked>,
    /// Frames have been taken and may not be with the daemon yet.
    is_writing: bool,
    /// When the daemon last said anything.
    heard: Duration,
    /// Set by a missed deadline: until then it may still answer.
    hung_until: Option<Duration>,
    /// When the timer looks next.
    look: Duration,
    is_ending: bool,
}

impl Questions {
    pub(super) fn new(link: Link) -> Self {
        Self {
            state: Mutex::new(State {
                link,
                questions: HashMap::new(),
                puts: HashMap::new(),
                outbox: Vec::new(),
                outbox_frames: 0,
                bodies: VecDeque::new(),
                is_writing: false,
                heard: Duration::ZERO,
                hung_until: None,
                look: Duration::MAX,
                is_ending: false,
            }),
            outgoing: Condvar::new(),
            timing: Condvar::new(),
            changed: Condvar::new(),
        }
    }

    /// Asks; false if no answer can be expected and go is to be told to build.
    pub(super) fn ask(
        &self,
        id: i64,
        action: [u8; 32],
        c_env: u64,
        now: Duration,
        most: Duration,
    ) -> bool {
        let mut state = self.locked();
        let mut deadline = now + most;
        match state.link {
            Link::Coming { until } => deadline = deadline.min(until),
            Link::Up => {}
            Link::Down => return false,
        }
        deadline = state.hung_until.map_or(deadline, |until| deadline.min(until));
        if deadline <= now || state.outbox_frames >= OUTBOX_MAX {
            return false;
        }
        let wire_id = id.cast_unsigned();
        state.questions.insert(wire_id, Question { id, action, asked: now, deadline });
        state.push(&Frame::Get { id: wire_id, action, c_env });
        self.outgoing.notify_one();
        if deadline < state.look {
            self.timing.notify_one();
        }
        true
    }

    /// Tells of a put; gives it back if there is nobody to tell.
    pub(super) fn tell(&self, put: Unacked) -> Result<(), Box<Unacked>> {
        let mut state = self.locked();
        let is_full = state.outbox_frames >= OUTBOX_MAX || state.bodies.len() >= OUTBOX_MAX;
        if state.link == Link::Down || is_full {
            return Err(Box::new(put));
        }
        if put.body.is_some() {
            state.bodies.push_back(put.clone());
        } else {
            state.push(&Frame::Put { id: put.id, action: put.action, entry: put.entry });
        }
        state.puts.insert(put.id, put);
        self.outgoing.notify_one();
        Ok(())
    }

    /// Says something that needs no answer; false if nobody listens.
    pub(super) fn say(&self, frames: &[Frame]) -> bool {
        let mut state = self.locked();
        let is_heard = state.link == Link::Up && state.outbox_frames < OUTBOX_MAX;
        if is_heard {
            for frame in frames {
                state.push(frame);
            }
            self.outgoing.notify_one();
        }
        is_heard
    }

    pub(super) fn up(&self, now: Duration) {
        let mut state = self.locked();
        state.link = Link::Up;
        state.heard = now;
        state.hung_until = None;
        self.changed.notify_all();
    }

    /// There is no daemon (any more): all that was waiting for it is given back.
    pub(super) fn down(&self) -> Lost {
        let mut state = self.locked();
        state.link = Link::Down;
        state.outbox = Vec::new();
        state.outbox_frames = 0;
        state.bodies.clear();
        let lost = Lost {
            questions: std::mem::take(&mut state.questions).into_values().collect(),
            puts: std::mem::take(&mut state.puts).into_values().collect(),
        };
        self.outgoing.notify_all();
        self.changed.notify_all();
        lost
    }

    /// The daemon said something, so it is alive.
    pub(super) fn heard(&self, now: Duration) {
        let mut state = self.locked();
        state.heard = now;
        state.hung_until = None;
    }

    pub(super) fn take(&self, id: u64) -> Option<Question> {
        self.locked().questions.remove(&id)
    }

    pub(super) fn is_asked(&self, id: u64) -> bool {
        self.locked().questions.contains_key(&id)
    }

    pub(super) fn acked(&self, id: u64) {
        self.locked().puts.remove(&id);
        self.changed.notify_all();
    }

    /// What to write next; waits for something unless there is a body at hand.
    pub(super) fn next_outgoing(&self, has_body: bool) -> Outgoing {
        let mut state = self.locked();
        state.is_writing = false;
        loop {
            if state.link != Link::Up {
                return Outgoing::End;
            }
            if !state.outbox.is_empty() {
                state.outbox_frames = 0;
                state.is_writing = true;
                return Outgoing::Frames(std::mem::take(&mut state.outbox));
            }
            if has_body {
                return Outgoing::Nothing;
            }
            if let Some(put) = state.bodies.pop_front() {
                return Outgoing::Body(put);
            }
            self.changed.notify_all();
            state = self.outgoing.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The questions whose time is up.
    pub(super) fn expired(&self, now: Duration) -> Vec<Question> {
        let mut state = self.locked();
        let State { questions, heard, hung_until, link, .. } = &mut *state;
        let unheard = |question: &Question| *link == Link::Up && *heard <= question.asked;
        let is_hung = questions.values().any(|q| q.deadline <= now && unheard(q));
        if is_hung {
            let until = *hung_until.get_or_insert(now + HUNG_GRACE);
            for question in questions.values_mut() {
                question.deadline = question.deadline.min(until);
            }
        }
        questions.extract_if(|_, question| question.deadline <= now).map(|(_, q)| q).collect()
    }

    /// Waits for the next deadline, at most until `tick`; false at the end.
    pub(super) fn wait_for_deadline(&self, now: Duration, tick: Duration) -> bool {
        let mut state = self.locked();
        if state.is_ending {
            return false;
        }
        let first = state.questions.values().map(|question| question.deadline).min();
        let look = first.map_or(tick, |first| first.min(tick));
        state.look = look;
        let wait = look.saturating_sub(now);
        let (state, _) =
            self.timing.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner);
        !state.is_ending
    }

    /// Something that others wait for is known now.
    pub(super) fn word(&self) {
        // Taken so that nobody is between looking and waiting.
        drop(self.locked());
        self.changed.notify_all();
    }

    /// Waits for a word that makes `is_known` true, or until `most` has passed.
    pub(super) fn wait_for_word(&self, most: Duration, is_known: impl Fn() -> bool) {
        // Known or not, the caller goes on.
        let _ = self.changed.wait_timeout_while(self.locked(), most, |_| !is_known());
    }

    /// Waits until all is written and confirmed, there is nobody to do so, or `most` has passed.
    /// True in the last case.
    pub(super) fn wait_settled(&self, most: Duration) -> bool {
        let waits = |state: &mut State| match state.link {
            Link::Down => false,
            // Only a put is worth waiting for a daemon to come.
            Link::Coming { .. } => !state.puts.is_empty(),
            Link::Up => !state.puts.is_empty() || !state.outbox.is_empty() || state.is_writing,
        };
        let waited = self.changed.wait_timeout_while(self.locked(), most, waits);
        waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Tells all threads that it is over; waiting ones return.
    pub(super) fn end(&self) {
        self.locked().is_ending = true;
        self.timing.notify_all();
        self.changed.notify_all();
    }

    /// Waits before another attempt to connect; true if there is none to be made.
    pub(super) fn rest(&self, most: Duration) -> bool {
        let resting = |state: &mut State| !state.is_ending;
        let waited = self.changed.wait_timeout_while(self.locked(), most, resting);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_ending
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, frame: &Frame) {
        frame.encode(&mut self.outbox);
        self.outbox_frames += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ids(questions: &[Question]) -> Vec<i64> {
        let mut ids: Vec<_> = questions.iter().map(|question| question.id).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn a_daemon_that_missed_a_deadline_gets_little_time_until_it_speaks() {
        let questions = Questions::new(Link::Up);
        let ask = |id, at: u32| questions.ask(id, [0; 32], 0, SECOND * at, SECOND * 30);
        assert!(ask(1, 1) && ask(2, 20));
        assert_eq!(ids(&questions.expired(SECOND * 30)), [0_i64; 0]);
        assert_eq!(ids(&questions.expired(SECOND * 31)), [1]);
        assert!(ask(3, 31), "it has one more second");
        assert_eq!(ids(&questions.expired(SECOND * 32)), [2, 3], "also for what was asked before");
        assert!(!ask(4, 32), "then it is not asked any more");
        questions.heard(SECOND * 33);
        assert!(ask(5, 33));
    }

    #[test]
    fn one_slow_answer_among_others_is_not_a_hung_daemon() {
        let questions = Questions::new(Link::Up);
        assert!(questions.ask(1, [0; 32], 0, SECOND, SECOND * 30));
        questions.heard(SECOND * 5);
        assert_eq!(ids(&questions.expired(SECOND * 31)), [1]);
        assert!(questions.ask(2, [0; 32], 0, SECOND * 31, SECOND * 30));
        assert_eq!(ids(&questions.expired(SECOND * 33)), [0_i64; 0]);
    }

    #[test]
    fn nobody_waits_for_a_daemon_longer_than_it_may_take_to_come() {
        let questions = Questions::new(Link::Coming { until: SECOND * 3 });
        assert!(questions.ask(1, [0; 32], 0, SECOND, SECOND * 30));
        assert_eq!(ids(&questions.expired(SECOND * 3)), [1]);
        assert!(!questions.ask(2, [0; 32], 0, SECOND * 3, SECOND * 30));
    }
}
