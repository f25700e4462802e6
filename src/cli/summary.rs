//! What a build is told at its end: one line, whose form scripts rely on, and the same as JSON.

use std::time::Duration;

use serde_json::{Value, json};

use super::stats;
use crate::units::{show_count, show_duration};

/// What the sessions of one id have come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Summary {
    pub(super) hits_near: u64,
    pub(super) hits_upstream: u64,
    pub(super) misses: u64,
    pub(super) bytes_in: u64,
    pub(super) owed: u64,
    pub(super) saved_s: f64,
    pub(super) waited_s: f64,
    pub(super) fetched_ahead: u64,
    pub(super) ahead_used: u64,
    /// Why nothing was fetched ahead or asked for, in few words.
    pub(super) why: Option<String>,
    /// Whether a helper is still telling.
    pub(super) is_open: bool,
}

impl Summary {
    /// Adds up the sessions with this id; a build that uses two namespaces has two.
    pub(super) fn of(status: &Value, id: &str) -> Self {
        let owed = status["journal"]["owed_entries"].as_u64().unwrap_or(0);
        let mut sum = Self { owed, ..Self::default() };
        let sessions = status["sessions"].as_array().into_iter().flatten();
        for session in sessions.filter(|session| session["id"] == id) {
            let number = |key: &str| session[key].as_u64().unwrap_or(0);
            let seconds = |key: &str| session[key].as_f64().unwrap_or(0.0);
            sum.hits_near += number("hits").saturating_sub(number("hits_upstream"));
            sum.hits_upstream += number("hits_upstream");
            sum.misses += number("misses");
            sum.bytes_in += number("bytes_in");
            sum.saved_s += seconds("saved_s");
            sum.waited_s += seconds("waited_s");
            sum.fetched_ahead += number("prefetched");
            sum.ahead_used += number("prefetch_used");
            sum.why = sum.why.take().or_else(|| why_not(status, session));
            sum.is_open |= session["ended"].is_null();
        }
        sum
    }

    pub(super) fn line(&self) -> String {
        let mut line = format!(
            "{} hits ({} memory/disk, {} upstream), {} misses, {} down, {} uploads owed, \
             saved ~{}, waited {}",
            show_count(self.hits_near + self.hits_upstream),
            show_count(self.hits_near),
            show_count(self.hits_upstream),
            show_count(self.misses),
            megabytes(self.bytes_in),
            show_count(self.owed),
            seconds(self.saved_s),
            seconds(self.waited_s),
        );
        // What is in front of this has one form for ever.
        if self.fetched_ahead > 0 {
            line.push_str(&format!(", {} fetched ahead", show_count(self.fetched_ahead)));
        }
        if let Some(why) = &self.why {
            line.push_str(&format!("; {why}"));
        }
        line
    }

    pub(super) fn json(&self, session: &str, exit_code: u8) -> Value {
        json!({
            "version": 1,
            "session": session,
            "exit_code": exit_code,
            "hits": self.hits_near + self.hits_upstream,
            "hits_upstream": self.hits_upstream,
            "misses": self.misses,
            "bytes_in": self.bytes_in,
            "uploads_owed": self.owed,
            "saved_s": self.saved_s,
            "waited_s": self.waited_s,
            "prefetched": self.fetched_ahead,
            "prefetch_used": self.ahead_used,
            "why": self.why,
        })
    }
}

/// Of all lookups so many percent may miss before a build asks why: what a commit changes is new.
const USUAL_MISSES: u64 = 20;

/// Why a session had less help than it might have had. None: it had, or there is nobody to help.
fn why_not(status: &Value, session: &Value) -> Option<String> {
    let number = |key: &str| session[key].as_u64().unwrap_or(0);
    if status["disk"]["full"] == true && number("misses") > 0 {
        return Some("the disk tier is full, so not all is stored".to_owned());
    }
    let upstreams = status["upstream"].as_object().filter(|upstreams| !upstreams.is_empty())?;
    let misses = number("misses");
    if misses == 0 && number("hits_upstream") == 0 {
        return None;
    }
    if number("prefetched") > 0 {
        return why_misses(status, session);
    }
    // One that has helped may have failed for a moment.
    let is_helping = number("hits_upstream") > 0;
    let troubles: Vec<_> = upstreams.values().map_while(trouble_with_gets).collect();
    if let Some(trouble) =
        troubles.first().filter(|_| troubles.len() == upstreams.len() && !is_helping)
    {
        return Some(format!("the central cache is of no help: {trouble}"));
    }
    let is_known = |key: &str| session[key].as_str().is_some_and(|text| !text.is_empty());
    let why = match session["forecast"].as_str() {
        Some("nothing") => "no manifest of this repository yet",
        Some("loading") => "manifests did not come in time",
        Some("none") if !is_known("scope") || !is_known("commit") => {
            "no commit is known, so nothing is fetched ahead"
        }
        _ => return why_misses(status, session),
    };
    Some(why.to_owned())
}

/// Why a build that there are manifests for has missed that much, if one reason explains most of it.
fn why_misses(status: &Value, session: &Value) -> Option<String> {
    let number = |key: &str| session[key].as_u64().unwrap_or(0);
    let misses = number("misses").saturating_sub(number("misses_local"));
    let lookups = misses + number("hits");
    if misses * 100 <= lookups * USUAL_MISSES {
        return None;
    }
    if number("misses_new") > misses / 2 {
        return Some("most of what missed is new: nobody has built it".to_owned());
    }
    // What stays local is seldom asked for.
    if number("misses_policy").saturating_sub(number("misses_local")) > misses / 2 {
        let links = status["upstream"].as_object().into_iter().flat_map(|all| all.values());
        let link = links.filter_map(link).next().map(|link| format!(" ({link})"));
        let link = link.unwrap_or_default();
        return Some(format!("policy: building is quicker than asking{link}"));
    }
    Some("the central cache did not give, or not in time, what its manifests name".to_owned())
}

/// How far an upstream is, as far as that is known.
fn link(upstream: &Value) -> Option<String> {
    let latency = upstream["latency_ms"]["p50"].as_f64().filter(|ms| *ms > 0.0)?;
    let bandwidth = upstream["bandwidth_mbit"].as_f64().filter(|mbit| *mbit > 0.0);
    let bandwidth = bandwidth.map(|mbit| format!(", {mbit:.0} Mbit/s"));
    Some(format!("upstream: {latency:.0} ms{}", bandwidth.unwrap_or_default()))
}

fn trouble_with_gets(upstream: &Value) -> Option<String> {
    let is_asked = upstream["state"] == "closed";
    let is_failing = upstream["get_errors"]["in_a_row"].as_u64().is_some_and(|n| n > 0);
    if is_asked && !is_failing { None } else { stats::trouble(upstream) }
}

/// Megabytes as networks count them; the first ten with a digit more.
pub(super) fn megabytes(bytes: u64) -> String {
    let tenths = bytes.saturating_add(50_000) / 100_000;
    match tenths {
        0 => "0 MB".to_owned(),
        1..100 => format!("{}.{} MB", tenths / 10, tenths % 10),
        _ => format!("{} MB", show_count(bytes.saturating_add(500_000) / 1_000_000)),
    }
}

fn seconds(seconds: f64) -> String {
    show_duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_the_form_that_scripts_rely_on() {
        let full = Summary {
            hits_near: 980,
            hits_upstream: 44,
            misses: 12,
            bytes_in: 35_200_000,
            owed: 2,
            saved_s: 41.4,
            waited_s: 0.31,
            ..Summary::default()
        };
        let cases = [
            (
                full.clone(),
                "1,024 hits (980 memory/disk, 44 upstream), 12 misses, 35 MB down, 2 uploads owed, \
                 saved ~41 s, waited 0.3 s",
            ),
            (
                Summary { fetched_ahead: 1_312, ..full.clone() },
                "1,024 hits (980 memory/disk, 44 upstream), 12 misses, 35 MB down, 2 uploads owed, \
                 saved ~41 s, waited 0.3 s, 1,312 fetched ahead",
            ),
            (
                Summary {
                    why: Some("no manifest of this repository yet".to_owned()),
                    ..full.clone()
                },
                "1,024 hits (980 memory/disk, 44 upstream), 12 misses, 35 MB down, 2 uploads owed, \
                 saved ~41 s, waited 0.3 s; no manifest of this repository yet",
            ),
            (
                Summary::default(),
                "0 hits (0 memory/disk, 0 upstream), 0 misses, 0 MB down, 0 uploads owed, \
                 saved ~0.0 s, waited 0.0 s",
            ),
            (
                Summary {
                    bytes_in: 1_250_000_000,
                    saved_s: 7300.0,
                    waited_s: -1.0,
                    ..full.clone()
                },
                "1,024 hits (980 memory/disk, 44 upstream), 12 misses, 1,250 MB down, \
                 2 uploads owed, saved ~2 h 1 m, waited 0.0 s",
            ),
        ];
        for (summary, line) in cases {
            assert_eq!(summary.line(), line);
        }
        for (bytes, shown) in [(49_999, "0 MB"), (50_000, "0.1 MB"), (9_940_000, "9.9 MB")] {
            assert_eq!(megabytes(bytes), shown);
        }
    }

    #[test]
    fn why_there_was_less_help_is_said_where_it_is_known() {
        let (closed, open) = (json!({"c": {"state": "closed"}}), json!({"c": {"state": "open"}}));
        let errors = json!({"state": "closed", "get_errors": {"in_a_row": 2, "last": "401"}});
        let denied = json!({ "c": errors });
        let one_of_two = json!({ "c": errors, "d": {"state": "closed"} });
        let aimed = |forecast: &str, misses: u64, misses_policy: u64| {
            json!({"scope": "s", "commit": "c", "forecast": forecast, "misses": misses,
                   "misses_policy": misses_policy})
        };
        // After a manifest that names some of what the build needs.
        let ahead = |misses: u64, misses_policy: u64, hits: u64| {
            json!({"scope": "s", "commit": "c", "forecast": "known", "prefetched": 500, "hits": hits,
                   "misses": misses, "misses_policy": misses_policy,
                   "misses_new": if misses > 800 { 800 } else { misses / 4 }})
        };
        let slow = json!({"c": {"state": "closed", "latency_ms": {"p50": 48.2},
                                "bandwidth_mbit": 8.1}});
        let nowhere = json!({"scope": "", "commit": "", "forecast": "none", "misses": 1});
        let cases = [
            (&closed, aimed("nothing", 1, 0), Some("no manifest of this repository yet")),
            (&closed, aimed("loading", 1, 0), Some("manifests did not come in time")),
            (&closed, aimed("known", 3, 2), Some("policy: building is quicker than asking")),
            (
                &slow,
                aimed("known", 3, 2),
                Some("policy: building is quicker than asking (upstream: 48 ms, 8 Mbit/s)"),
            ),
            (&closed, ahead(900, 40, 600), Some("most of what missed is new: nobody has built it")),
            (&closed, ahead(400, 300, 600), Some("policy: building is quicker than asking")),
            (
                &closed,
                ahead(400, 150, 600),
                Some("the central cache did not give, or not in time, what its manifests name"),
            ),
            // What each checkout has of its own has no share in it.
            (
                &closed,
                json!({"scope": "s", "commit": "c", "forecast": "known", "prefetched": 500,
                       "hits": 600, "misses": 400, "misses_local": 300, "misses_policy": 390,
                       "misses_new": 20}),
                None,
            ),
            // What a commit changes is new; that says nothing of the cache.
            (&closed, ahead(100, 0, 600), None),
            (&closed, nowhere, Some("no commit is known, so nothing is fetched ahead")),
            (
                &open,
                aimed("nothing", 1, 0),
                Some("the central cache is of no help: in trouble and not asked"),
            ),
            (
                &denied,
                aimed("nothing", 1, 0),
                Some("the central cache is of no help: the last 2 questions failed: 401"),
            ),
            (&one_of_two, aimed("nothing", 1, 0), Some("no manifest of this repository yet")),
            (
                &closed,
                aimed("known", 3, 1),
                Some("the central cache did not give, or not in time, what its manifests name"),
            ),
            (&closed, aimed("nothing", 0, 0), None),
            (&json!({}), aimed("nothing", 1, 0), None),
        ];
        for (upstream, session, why) in cases {
            let status = json!({ "upstream": upstream });
            assert_eq!(why_not(&status, &session).as_deref(), why, "{session}");
        }
    }

    #[test]
    fn sessions_of_one_build_are_added_up() {
        let session = |id: &str, ended: Value| {
            json!({"id": id, "hits": 5, "hits_upstream": 2, "misses": 1, "bytes_in": 10,
                   "saved_s": 1.5, "waited_s": 0.5, "ended": ended})
        };
        let status = json!({
            "journal": {"owed_entries": 7},
            "sessions": [session("a", 9.into()), session("b", 9.into()), session("a", Value::Null)],
        });
        let sum = Summary::of(&status, "a");
        assert_eq!((sum.hits_near, sum.hits_upstream, sum.misses, sum.owed), (6, 4, 2, 7));
        assert!(sum.is_open);
        assert!(!Summary::of(&status, "b").is_open);
        assert_eq!(Summary::of(&json!({}), "c"), Summary::default());
    }
}
