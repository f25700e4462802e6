//! What the state of daemon, socket, store and upstreams means. Pure: facts in, findings out.

use serde_json::{Value, json};

use crate::cli::stats::{self, number, text};
use crate::units::ByteSize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ok,
    /// Worth knowing; nothing is broken.
    Note,
    Bad,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) name: String,
    pub(super) state: State,
    pub(super) text: String,
}

impl Check {
    pub(super) fn new(name: &str, state: State, text: impl Into<String>) -> Self {
        Self { name: name.to_owned(), state, text: text.into() }
    }

    pub(super) fn line(&self) -> String {
        format!("{:<5} {}: {}", self.word(), self.name, self.text)
    }

    pub(super) fn json(&self) -> Value {
        json!({ "name": self.name, "state": self.word(), "text": self.text })
    }

    const fn word(&self) -> &'static str {
        match self.state {
            State::Ok => "ok",
            State::Note => "note",
            State::Bad => "wrong",
        }
    }
}

pub(super) fn no_daemon() -> Check {
    let text = "none runs; `larder run`, or a go whose GOCACHEPROG is larder, starts one";
    Check::new("daemon", State::Note, text)
}

pub(super) fn daemon(status: Result<&Value, &String>, ours: &str) -> Check {
    let status = match status {
        Ok(status) => status,
        Err(problem) => return Check::new("daemon", State::Bad, problem.as_str()),
    };
    let version = text(&status["larder"]);
    if version != ours {
        let advice =
            format!("it is larder {version} and this is {ours}; end it with `larder stop`");
        return Check::new("daemon", State::Note, advice);
    }
    Check::new("daemon", State::Ok, format!("larder {version} answers"))
}

/// Owner and mode of the socket and of its directory, and who we are.
pub(super) fn socket(path: &str, socket: (u32, u32), dir: (u32, u32), uid: u32) -> Check {
    if dir.1 & 0o022 != 0 {
        let text = format!("others can put a daemon of theirs at {path}: chmod go-w its directory");
        return Check::new("socket", State::Bad, text);
    }
    if socket.0 != uid {
        let text = format!("{path} belongs to user {}, not to you ({uid})", socket.0);
        return Check::new("socket", State::Note, text);
    }
    if socket.1 & 0o077 != 0 {
        let text = format!("{path} is open to others ({:03o})", socket.1 & 0o777);
        return Check::new("socket", State::Note, text);
    }
    Check::new("socket", State::Ok, path)
}

/// File systems that cannot hold the store's index.
pub(super) fn is_remote(kind: &str) -> bool {
    let remote = ["nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs"];
    remote.contains(&kind) || kind.starts_with("fuse.sshfs")
}

pub(super) fn store(path: &str, can_write: bool, is_remote: bool) -> Check {
    if !can_write {
        let text = format!("{path} cannot be written; name another directory with --store");
        return Check::new("store", State::Bad, text);
    }
    if is_remote {
        let text = format!("{path} is on a network; name a directory on a local disk with --store");
        return Check::new("store", State::Bad, text);
    }
    Check::new("store", State::Ok, path)
}

/// A full disk leaves a daemon that answers and stores nothing.
pub(super) fn space(status: &Value) -> Vec<Check> {
    let disk = &status["disk"];
    let (free, limit) = (number(&disk["free_bytes"]), number(&disk["limit_bytes"]));
    let mut found = Vec::new();
    if limit == 0 {
        let text = "the limit is 0, so nothing is stored; raise it with --disk";
        found.push(Check::new("disk", State::Bad, text));
    } else if disk["full"] == true {
        let text = "full, so nothing new is stored before older entries are given up; if it stays \
                    so, raise --disk, free space, or see `larder flush`";
        found.push(Check::new("disk", State::Note, text));
    } else if free < ByteSize::gib(1).bytes() {
        let text = format!("only {} are free", ByteSize(free));
        found.push(Check::new("disk", State::Note, text));
    } else {
        found.push(Check::new("disk", State::Ok, format!("{} are free", ByteSize(free))));
    }
    for (key, meaning) in [
        ("faults", "reads or writes of the store failed; see the daemon's log"),
        (
            "corrupt",
            "entries were damaged, here or on their way from upstream, and dropped; the \
                     daemon's log names them, `larder verify` looks for more here",
        ),
    ] {
        let count = number(&disk[key]);
        if count > 0 {
            found.push(Check::new("disk", State::Note, format!("{count} {meaning}")));
        }
    }
    found
}

pub(super) fn upstreams(status: &Value, is_wanted: bool) -> Vec<Check> {
    let all: Vec<_> = status["upstream"].as_object().into_iter().flatten().collect();
    if all.is_empty() {
        let (state, text) = if is_wanted {
            (State::Bad, "yours is not known to the daemon; `larder stop`, and start it again")
        } else {
            (State::Note, "none: what this machine builds stays on it; name one with --upstream")
        };
        return vec![Check::new("upstream", state, text)];
    }
    let check = |(name, upstream): (&String, &Value)| {
        let name = format!("upstream {name}");
        let (answered, failed) = (number(&upstream["gets"]), number(&upstream["failures"]));
        let Some(trouble) = stats::trouble(upstream) else {
            return Check::new(&name, State::Ok, format!("{answered} gets, {failed} failures"));
        };
        // One error may be chance.
        let in_a_row = ["get_errors", "put_errors"].map(|key| number(&upstream[key]["in_a_row"]));
        let is_chance = text(&upstream["state"]) == "closed" && in_a_row.iter().all(|n| *n < 2);
        let is_tried = text(&upstream["state"]) == "half_open";
        let state = if is_chance || is_tried { State::Note } else { State::Bad };
        Check::new(&name, state, trouble)
    };
    all.into_iter().map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_follow_from_facts() {
        let ours = |larder: &str| json!({ "larder": larder });
        let silence = "no daemon".to_owned();
        let disk = |free: u64, limit: u64| json!({"disk": {"free_bytes": free, "limit_bytes": limit, "faults": 0, "corrupt": 0}});
        let upstream = |state: &str| json!({"upstream": {"central": {"state": state}}});
        let failing = |n: u64| {
            let errors = json!({"in_a_row": n, "last": "upstream answered 401"});
            json!({"upstream": {"main": {"state": "closed", "get_errors": errors}}})
        };
        let cases = [
            (daemon(Ok(&ours("1.0")), "1.0"), State::Ok, "answers"),
            (daemon(Ok(&ours("0.9")), "1.0"), State::Note, "larder stop"),
            (daemon(Err(&silence), "1.0"), State::Bad, "no daemon"),
            (socket("/s", (7, 0o140_600), (7, 0o40_700), 7), State::Ok, "/s"),
            (socket("/s", (7, 0o140_600), (7, 0o40_777), 7), State::Bad, "chmod"),
            (socket("/s", (8, 0o140_600), (7, 0o40_700), 7), State::Note, "user 8"),
            (socket("/s", (7, 0o140_666), (7, 0o40_700), 7), State::Note, "666"),
            (store("/s", true, false), State::Ok, "/s"),
            (store("/s", false, false), State::Bad, "--store"),
            (store("/s", true, true), State::Bad, "local disk"),
            (space(&disk(5 << 30, 1)).remove(0), State::Ok, "5 GiB"),
            (space(&disk(5 << 20, 1)).remove(0), State::Note, "5 MiB"),
            (space(&disk(5 << 30, 0)).remove(0), State::Bad, "--disk"),
            (
                space(&json!({"disk": {"limit_bytes": 1, "full": true}})).remove(0),
                State::Note,
                "full",
            ),
            (upstreams(&upstream("closed"), true).remove(0), State::Ok, "gets"),
            (upstreams(&upstream("half_open"), true).remove(0), State::Note, "again"),
            (upstreams(&upstream("open"), true).remove(0), State::Bad, "not asked"),
            (upstreams(&failing(1), true).remove(0), State::Note, "401"),
            (upstreams(&failing(2), true).remove(0), State::Bad, "401"),
            (upstreams(&json!({}), false).remove(0), State::Note, "--upstream"),
            (upstreams(&json!({}), true).remove(0), State::Bad, "larder stop"),
        ];
        for (check, state, part) in cases {
            assert_eq!(check.state, state, "{check:?}");
            assert!(check.text.contains(part), "{check:?}");
        }
        assert!(is_remote("nfs4") && !is_remote("ext4"));
    }
}
