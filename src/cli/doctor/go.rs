//! What go's own settings mean for the cache. Pure: facts in, findings out.

use serde_json::Value;

use super::checks::{Check, State};
use crate::cli::env;
use crate::cli::stats::{misses, number};

/// The first version of go that asks a GOCACHEPROG without being built for it.
const FIRST: (u32, u32) = (1, 24);
/// Gets without a single hit that are not worth a word: a first build.
const FEW_GETS: u64 = 50;

pub(super) fn missing(problem: &str) -> Check {
    Check::new("go", State::Bad, format!("cannot be asked: {problem}; put go into PATH"))
}

pub(super) fn version(written: &str) -> Check {
    let number = written.split_whitespace().next().unwrap_or_default();
    match parse(number) {
        // A go between releases calls itself `devel …`.
        None => Check::new("go", State::Note, format!("`{written}`; 1.24 and later use the cache")),
        Some(version) if version < FIRST => {
            let text = format!("{number} silently ignores GOCACHEPROG; 1.24 and later ask it");
            Check::new("go", State::Bad, text)
        }
        Some(_) => Check::new("go", State::Ok, number),
    }
}

fn parse(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.strip_prefix("go")?.split('.');
    let major = parts.next()?.parse().ok()?;
    // `go1.24rc1` is not a number alone.
    let minor = parts.next().unwrap_or("0");
    let digits = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
    Some((major, minor[..digits].parse().ok()?))
}

pub(super) fn program(value: &str) -> Check {
    if value.is_empty() {
        let text = "is not set, so go asks nobody; use `larder run`, or eval \"$(larder env go)\"";
        return Check::new("GOCACHEPROG", State::Bad, text);
    }
    if !env::is_ours(value) {
        let text = format!("is `{value}`, which is not larder; unset it (see also `go env -w`)");
        return Check::new("GOCACHEPROG", State::Bad, text);
    }
    Check::new("GOCACHEPROG", State::Ok, value)
}

pub(super) fn flags(goflags: &str) -> Check {
    let mut words = goflags.split_whitespace();
    if words.any(|word| matches!(word, "-trimpath" | "--trimpath" | "-trimpath=true")) {
        return Check::new("GOFLAGS", State::Ok, goflags);
    }
    let text = "has no -trimpath: go's keys contain the checkout's path, so only machines that \
                build under the same path share; with GOFLAGS=-trimpath everywhere all do";
    Check::new("GOFLAGS", State::Note, text)
}

pub(super) fn cache(dir: &str, can_write: bool) -> Check {
    match dir {
        "" | "off" => {
            let text = "is off, and go needs it even where it asks larder; name a directory";
            Check::new("GOCACHE", State::Bad, text)
        }
        dir if !can_write => {
            let text = format!("{dir} cannot be written, and go fails without; name another");
            Check::new("GOCACHE", State::Bad, text)
        }
        dir => Check::new("GOCACHE", State::Ok, dir),
    }
}

/// What the daemon's counters say of the hit rate.
pub(super) fn hits(status: &Value) -> Check {
    let name = "hits";
    let go = &status["requests"]["go"];
    let sessions = status["sessions"].as_array().map_or(&[][..], Vec::as_slice);
    // Helpers answer most warm gets themselves, which only sessions count.
    let in_sessions = |key: &str| sessions.iter().map(|s| number(&s[key])).sum::<u64>();
    let keys = ["hit_memory", "hit_disk", "hit_native", "hit_upstream", "coalesced"];
    let in_daemon: u64 = keys.iter().map(|key| number(&go[*key])).sum();
    let hits = in_daemon.max(in_sessions("hits"));
    let gets = number(&go["gets"]).max(hits + misses(go));
    if gets == 0 {
        let text = "this daemon was never asked: no go that ran since it started had GOCACHEPROG \
                    set to larder, or it talks to another daemon (another user, --socket)";
        return Check::new(name, State::Note, text);
    }
    if hits > 0 {
        return Check::new(name, State::Ok, format!("{hits} of {gets} gets"));
    }
    let why = ["fault", "deadline", "breaker"].map(|key| number(&go["miss"][key]));
    if why.iter().sum::<u64>() * 2 > gets {
        let text = format!("none of {gets} gets: most failed on the way to the upstream");
        return Check::new(name, State::Bad, text);
    }
    if gets < FEW_GETS || in_sessions("puts").max(number(&go["puts"])) == 0 {
        let text = format!("none of {gets} gets yet; a first build has none");
        return Check::new(name, State::Note, text);
    }
    let text = format!(
        "none of {gets} gets: keys differ between builds; compare go's version, GOFLAGS \
         (-trimpath), CGO_ENABLED and the checkout's path with those of the machine that uploads"
    );
    Check::new(name, State::Note, text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn findings_follow_from_gos_settings() {
        let cases = [
            (version("go1.26.8"), State::Ok, "go1.26.8"),
            (version("go1.24rc1"), State::Ok, "go1.24rc1"),
            (version("go1.24.0 X:nocoverageredesign"), State::Ok, "go1.24.0"),
            (version("go1.23.9"), State::Bad, "silently ignores"),
            (version("devel go1.27-abcdef"), State::Note, "1.24"),
            (version(""), State::Note, "1.24"),
            (program(""), State::Bad, "larder run"),
            (program("/usr/bin/larder go"), State::Ok, "larder"),
            (program("gocachez -x"), State::Bad, "gocachez"),
            (flags(""), State::Note, "same path"),
            (flags("-mod=mod -trimpath"), State::Ok, "-trimpath"),
            (flags("-trimpath=false"), State::Note, "same path"),
            (cache("off", true), State::Bad, "is off"),
            (cache("/c", false), State::Bad, "cannot be written"),
            (cache("/c", true), State::Ok, "/c"),
        ];
        for (check, state, part) in cases {
            assert_eq!(check.state, state, "{check:?}");
            assert!(check.text.contains(part), "{check:?}");
        }
    }

    #[test]
    fn a_hit_rate_of_zero_has_a_likely_reason() {
        let status = |gets: u64, hits: u64, faults: u64, puts: u64, near: u64| {
            json!({
                "requests": {"go": {"gets": gets, "puts": puts, "hit_disk": hits,
                    "miss": {"absent": gets - hits - faults, "fault": faults}}},
                "sessions": [{"hits": near, "puts": 0}],
            })
        };
        let cases = [
            (status(0, 0, 0, 0, 0), State::Note, "never asked"),
            (status(10, 4, 0, 0, 0), State::Ok, "4 of 10"),
            (status(0, 0, 0, 0, 9), State::Ok, "9 of 9"),
            (status(100, 0, 80, 90, 0), State::Bad, "upstream"),
            (status(20, 0, 0, 20, 0), State::Note, "first build"),
            (status(1000, 0, 0, 900, 0), State::Note, "keys differ"),
        ];
        for (status, state, part) in cases {
            let check = hits(&status);
            assert_eq!(check.state, state, "{check:?}");
            assert!(check.text.contains(part), "{check:?}");
        }
    }
}
