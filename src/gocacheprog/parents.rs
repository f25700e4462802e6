//! What the commit was made from: looked for beside everything else, and nobody waits for it.
//!
//! The daemon's word about the store comes after our `Hello`, and the first get waits for it, so
//! `Hello` goes out with what is known by then. What git says later follows in a frame of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::gocacheprog::Helper;
use crate::gocacheprog::questions::Questions;
use crate::wire::go::Frame;
use crate::{git, tasks};

#[derive(Debug, Default)]
pub(super) struct Parents(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// None: nobody has looked yet.
    ids: Option<Vec<String>>,
    is_looking: bool,
    /// The daemon that we are connected to has heard them.
    is_told: bool,
}

/// Begins to look for the parents of the commit that is built.
pub(super) fn look(helper: &Arc<Helper>) {
    if helper.config.commit.is_empty() {
        return;
    }
    helper.parents.locked().is_looking = true;
    let shared = helper.clone();
    let looking = tasks::thread("parents", move || {
        let config = &shared.config;
        let ids = git::parents(&config.dir, &config.commit, &config.git_env, config.git_deadline);
        shared.parents.found(ids);
        shared.parents.tell(&shared.questions);
        shared.questions.word();
    });
    if looking.is_err() {
        helper.parents.found(Vec::new());
    }
}

impl Parents {
    /// What the next daemon is told at once.
    pub(super) fn for_hello(&self) -> Vec<String> {
        let mut state = self.locked();
        let ids = state.ids.clone().unwrap_or_default();
        // `Hello` has no word for there being none.
        state.is_told = !ids.is_empty();
        ids
    }

    /// Tells the daemon, if there is one and something that it has not heard; that there are none, or
    /// none that git would name, too: it waits for them. Called by whoever comes second: the parents or
    /// the connection.
    pub(super) fn tell(&self, questions: &Questions) {
        let mut state = self.locked();
        if let (false, Some(ids)) = (state.is_told, state.ids.clone()) {
            state.is_told = questions.say(&[Frame::Parents { ids }]);
        }
    }

    /// Whether nothing more is to be expected.
    pub(super) fn is_settled(&self) -> bool {
        !self.locked().is_looking
    }

    fn found(&self, ids: Vec<String>) {
        let mut state = self.locked();
        state.ids = Some(ids);
        state.is_looking = false;
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gocacheprog::questions::{Link, Outgoing};

    #[test]
    fn a_daemon_hears_of_them_once_whichever_comes_first() {
        let parents = Parents::default();
        let questions = Questions::new(Link::Down);
        assert_eq!(parents.for_hello(), [""; 0]);
        parents.found(vec!["a".into()]);
        parents.tell(&questions);
        questions.up(std::time::Duration::ZERO);
        parents.tell(&questions);
        parents.tell(&questions);
        let mut expected = Vec::new();
        Frame::Parents { ids: vec!["a".into()] }.encode(&mut expected);
        let Outgoing::Frames(said) = questions.next_outgoing(true) else { panic!("nothing said") };
        assert_eq!(said, expected);
        assert_eq!(parents.for_hello(), ["a"], "the next daemon");
        parents.tell(&questions);
        assert!(matches!(questions.next_outgoing(true), Outgoing::Nothing));
    }

    /// A first commit has none, and where git refuses none are known. Nobody said so, and the daemon
    /// waited a quarter of a second for them in each cold build.
    #[test]
    fn a_daemon_hears_that_there_are_none() {
        let parents = Parents::default();
        let questions = Questions::new(Link::Down);
        questions.up(std::time::Duration::ZERO);
        parents.tell(&questions);
        assert!(matches!(questions.next_outgoing(true), Outgoing::Nothing), "not looked yet");
        parents.found(Vec::new());
        for which in ["this daemon", "the next one"] {
            assert_eq!(parents.for_hello(), [""; 0], "{which}");
            parents.tell(&questions);
            parents.tell(&questions);
            let mut expected = Vec::new();
            Frame::Parents { ids: Vec::new() }.encode(&mut expected);
            let Outgoing::Frames(said) = questions.next_outgoing(true) else { panic!("{which}") };
            assert_eq!(said, expected, "{which}");
        }
    }
}
