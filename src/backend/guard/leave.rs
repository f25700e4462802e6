//! The breaker's leave for one request, from the question to what is known of its end.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::backend::BackendError;
use crate::backend::guard::breaker::{Asks, Outcome, Ticket};
use crate::backend::guard::{Config, Shared};
use crate::telemetry::metrics::{Streak, Upstream};

/// The breaker's leave for one request. Dropped without a word it counts as given up, so that a
/// probe whose client went away makes room for the next.
pub(super) struct Leave {
    shared: Arc<Shared>,
    /// None once settled.
    ticket: Option<Ticket>,
    who: Asks,
}

impl Leave {
    pub(super) const fn new(shared: Arc<Shared>, ticket: Ticket, who: Asks) -> Self {
        Self { shared, ticket: Some(ticket), who }
    }

    pub(super) fn settle(&mut self, outcome: Outcome) {
        if let Some(ticket) = self.ticket.take() {
            self.shared.with_breaker(|breaker, now| breaker.settle(ticket, outcome, now));
        }
    }

    pub(super) fn prove(&mut self) {
        if let Some(ticket) = self.ticket {
            self.ticket = Some(self.shared.with_breaker(|breaker, _| breaker.prove(ticket)));
        }
    }

    pub(super) fn good(&mut self) {
        self.errors().good();
        self.settle(Outcome::Good);
    }

    /// Settles by what `error` says about upstream. A refusal shows that somebody is at home.
    pub(super) fn fail(&mut self, error: BackendError) -> BackendError {
        let outcome = if error.is_trouble() { Outcome::Trouble } else { Outcome::Good };
        self.fail_as(error, outcome)
    }

    pub(super) fn fail_as(&mut self, error: BackendError, outcome: Outcome) -> BackendError {
        self.shared.upstream.failures.inc();
        if !error.is_of_entry() {
            self.errors().bad(&error);
        }
        self.settle(outcome);
        error
    }

    pub(super) fn config(&self) -> &Config {
        &self.shared.config
    }

    pub(super) fn upstream(&self) -> &Upstream {
        &self.shared.upstream
    }

    /// Where it is noted what goes wrong.
    pub(super) fn errors(&self) -> &Streak {
        match self.who {
            Asks::Get => &self.shared.upstream.get_errors,
            Asks::Put => &self.shared.upstream.put_errors,
        }
    }

    pub(super) fn waiting(&self) -> &AtomicUsize {
        &self.shared.waiting
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.settle(Outcome::Unknown);
    }
}
