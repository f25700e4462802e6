//! The daemon's status as people read it: a few lines. Programs take `--json`.

use std::time::Duration;

use serde_json::Value;

use crate::units::{ByteSize, show_count, show_duration};

pub(super) fn lines(status: &Value) -> Vec<String> {
    let up = Duration::from_secs(number(&status["uptime_s"]));
    let mut lines = vec![format!(
        "larder {}, up {}, store {}",
        text(&status["larder"]),
        show_duration(up),
        text(&status["store"]),
    )];
    let requests = status["requests"].as_object().into_iter().flatten();
    lines.extend(requests.filter_map(|(name, counts)| request_line(name, counts)));
    for name in ["memory", "disk"] {
        let tier = &status[name];
        lines.push(format!(
            "{name}: {} entries, {} of {}",
            show_count(number(&tier["entries"])),
            size(&tier["bytes"]),
            size(&tier["limit_bytes"]),
        ));
    }
    let journal = &status["journal"];
    lines.push(format!(
        "uploads: {} owed ({}), {} done ({})",
        show_count(number(&journal["owed_entries"])),
        size(&journal["owed_bytes"]),
        show_count(number(&journal["uploaded_entries"])),
        size(&journal["uploaded_bytes"]),
    ));
    for (name, upstream) in status["upstream"].as_object().into_iter().flatten() {
        lines.push(format!(
            "upstream {name}: {}, {} in, {} out, p50 {:.0} ms, p99 {:.0} ms",
            match trouble(upstream) {
                Some(trouble) => trouble,
                None if number(&upstream["gets"]) + number(&upstream["puts"]) == 0 => {
                    "not asked yet".to_owned()
                }
                None => "reachable".to_owned(),
            },
            size(&upstream["bytes_in"]),
            size(&upstream["bytes_out"]),
            upstream["latency_ms"]["p50"].as_f64().unwrap_or(0.0),
            upstream["latency_ms"]["p99"].as_f64().unwrap_or(0.0),
        ));
    }
    lines
}

/// What is wrong with an upstream, as far as its last answers tell. None: nothing.
pub(super) fn trouble(upstream: &Value) -> Option<String> {
    let (get, put) = (&upstream["get_errors"], &upstream["put_errors"]);
    let (gets, puts) = (number(&get["in_a_row"]), number(&put["in_a_row"]));
    let (what, errors) = match text(&upstream["state"]) {
        "half_open" => ("was in trouble and is tried again".to_owned(), [get, put]),
        "open" => ("in trouble and not asked".to_owned(), [get, put]),
        _ if gets > 0 => (format!("the last {} questions failed", show_count(gets)), [get, get]),
        _ if puts > 0 => (format!("the last {} uploads failed", show_count(puts)), [put, put]),
        _ => return None,
    };
    let last = errors.iter().find_map(|errors| errors["last"].as_str());
    Some(last.map_or_else(|| what.clone(), |last| format!("{what}: {last}")))
}

/// Nothing for a protocol that nobody has used.
fn request_line(name: &str, counts: &Value) -> Option<String> {
    let (gets, puts) = (number(&counts["gets"]), number(&counts["puts"]));
    if gets + puts == 0 {
        return None;
    }
    let misses = misses(counts);
    let near = ["hit_memory", "hit_disk", "hit_native"].map(|key| number(&counts[key]));
    let far = number(&counts["hit_upstream"]) + number(&counts["coalesced"]);
    Some(format!(
        "{name}: {} gets, {} from here, {} from upstream, {} misses; {} puts",
        show_count(gets),
        show_count(near.iter().sum()),
        show_count(far),
        show_count(misses),
        show_count(puts),
    ))
}

pub(super) fn misses(counts: &Value) -> u64 {
    counts["miss"].as_object().map_or(0, |all| all.values().map(number).sum())
}

pub(super) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn size(value: &Value) -> ByteSize {
    ByteSize(number(value))
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unused_protocols_are_left_out() {
        let status = json!({
            "larder": "0.1.0", "uptime_s": 5, "store": "/s",
            "requests": {
                "go": {"gets": 10, "puts": 2, "hit_disk": 3, "hit_upstream": 4, "coalesced": 1,
                       "miss": {"absent": 2}},
                "kv": {"gets": 0, "puts": 0},
            },
            "upstream": {
                "central": {"state": "open", "get_errors": {"in_a_row": 9, "last": "refused"}},
                "odd": {"state": "closed", "gets": 4,
                        "get_errors": {"in_a_row": 4, "last": "upstream answered 401"}},
                "full": {"state": "closed", "put_errors": {"in_a_row": 2, "last": "full"}},
                "new": {"state": "closed"},
            },
        });
        let lines = lines(&status).join("\n");
        assert!(lines.contains("go: 10 gets, 3 from here, 5 from upstream, 2 misses; 2 puts"));
        for said in [
            "upstream central: in trouble and not asked: refused,",
            "upstream odd: the last 4 questions failed: upstream answered 401,",
            "upstream full: the last 2 uploads failed: full,",
            "upstream new: not asked yet,",
        ] {
            assert!(lines.contains(said), "{lines}");
        }
        assert!(!lines.contains("kv:"));
    }
}
