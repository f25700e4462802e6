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
            match text(&upstream["state"]) {
                "closed" => "reachable",
                "half_open" => "being tried again",
                _ => "not reachable",
            },
            size(&upstream["bytes_in"]),
            size(&upstream["bytes_out"]),
            upstream["latency_ms"]["p50"].as_f64().unwrap_or(0.0),
            upstream["latency_ms"]["p99"].as_f64().unwrap_or(0.0),
        ));
    }
    lines
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
            "upstream": {"central": {"state": "open"}},
        });
        let lines = lines(&status).join("\n");
        assert!(lines.contains("go: 10 gets, 3 from here, 5 from upstream, 2 misses; 2 puts"));
        assert!(lines.contains("upstream central: not reachable"), "{lines}");
        assert!(!lines.contains("kv:"));
    }
}
