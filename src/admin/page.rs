//! The page that a browser shows: the status JSON as tables. It loads nothing, runs nothing, and
//! escapes whatever a client may have named.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use crate::units::{ByteSize, show_count, show_duration};

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>larder</title><style>\
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;\
margin:2rem auto;padding:0 1rem}h1{font-size:1.4rem}h2{font-size:1.05rem;margin:1.8rem 0 .4rem}\
table{border-collapse:collapse;width:100%}th,td{text-align:right;padding:.25rem .6rem;\
border-bottom:1px solid #8884;font-variant-numeric:tabular-nums}th{font-weight:600}\
th:first-child,td:first-child{text-align:left}div{overflow-x:auto}</style></head><body>";

/// The whole page.
pub(super) fn render(status: &Value) -> String {
    let mut out = String::with_capacity(8 << 10);
    out.push_str(HEAD);
    let up = show_duration(Duration::from_secs(number(&status["uptime_s"])));
    let ready = if status["ready"] == true { "ready" } else { "not ready" };
    // Writing into a string does not fail, here and below.
    let _ = write!(
        out,
        "<h1>larder {}</h1><p>{ready}, up {}, serving {}<br>store {}</p>",
        escape(text(&status["larder"])),
        escape(&up),
        escape(&words(&status["listen"])),
        escape(text(&status["store"])),
    );
    requests(&mut out, &status["requests"]);
    tiers(&mut out, status);
    upstreams(&mut out, &status["upstream"]);
    journal(&mut out, &status["journal"]);
    sessions(&mut out, &status["sessions"]);
    out.push_str("<p>The same for programs: /status, /metrics</p></body></html>\n");
    out
}

fn requests(out: &mut String, requests: &Value) {
    let head =
        ["Requests", "gets", "memory", "disk", "native", "upstream", "joined", "misses", "puts"];
    let row = |(name, r): (&String, &Value)| {
        let misses = r["miss"].as_object().map_or(0, |all| all.values().map(number).sum());
        let mut row = vec![name.clone()];
        let hits = ["gets", "hit_memory", "hit_disk", "hit_native", "hit_upstream", "coalesced"];
        row.extend(hits.map(|key| count(&r[key])));
        row.extend([show_count(misses), count(&r["puts"])]);
        row
    };
    let rows = requests.as_object().into_iter().flatten().map(row).collect();
    table(out, &head, rows);
}

fn tiers(out: &mut String, status: &Value) {
    let row = |name: &str, tier: &Value, free: String| {
        let (bytes, limit) = (bytes(&tier["bytes"]), bytes(&tier["limit_bytes"]));
        vec![name.to_owned(), count(&tier["entries"]), bytes, limit, free]
    };
    let (memory, disk) = (&status["memory"], &status["disk"]);
    let rows =
        vec![row("memory", memory, String::new()), row("disk", disk, bytes(&disk["free_bytes"]))];
    table(out, &["Tiers", "entries", "size", "limit", "free on the disk"], rows);
    let _ = write!(
        out,
        "<p>evicted {} entries, {}; found damaged {}</p>",
        count(&disk["evicted_entries"]),
        bytes(&disk["evicted_bytes"]),
        count(&disk["corrupt"]),
    );
}

fn upstreams(out: &mut String, upstreams: &Value) {
    let head = ["Upstreams", "breaker", "gets", "puts", "received", "sent", "p50", "p99", "Mbit/s"];
    let row = |(name, u): (&String, &Value)| {
        let latency = &u["latency_ms"];
        let ms = |value: &Value| format!("{:.0} ms", value.as_f64().unwrap_or(0.0));
        vec![
            name.clone(),
            text(&u["state"]).replace('_', " "),
            count(&u["gets"]),
            count(&u["puts"]),
            bytes(&u["bytes_in"]),
            bytes(&u["bytes_out"]),
            ms(&latency["p50"]),
            ms(&latency["p99"]),
            format!("{:.0}", u["bandwidth_mbit"].as_f64().unwrap_or(0.0)),
        ]
    };
    table(out, &head, upstreams.as_object().into_iter().flatten().map(row).collect());
}

fn journal(out: &mut String, journal: &Value) {
    let dropped: u64 =
        journal["dropped"].as_object().map_or(0, |all| all.values().map(number).sum());
    let row = vec![
        "entries".to_owned(),
        count(&journal["owed_entries"]),
        show_duration(Duration::from_secs(number(&journal["oldest_s"]))),
        count(&journal["uploaded_entries"]),
        count(&journal["retried"]),
        show_count(dropped),
    ];
    let sizes = vec![
        "size".to_owned(),
        bytes(&journal["owed_bytes"]),
        String::new(),
        bytes(&journal["uploaded_bytes"]),
    ];
    let head = ["Journal", "owed", "oldest", "uploaded", "tried again", "given up"];
    table(out, &head, vec![row, sizes]);
}

fn sessions(out: &mut String, sessions: &Value) {
    let head =
        ["Sessions", "scope", "commit", "state", "hits", "misses", "received", "saved", "waited"];
    let time = |value: &Value| {
        let seconds = value.as_f64().filter(|seconds| *seconds >= 0.0).unwrap_or(0.0);
        show_duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
    };
    let row = |s: &Value| {
        vec![
            text(&s["id"]).to_owned(),
            text(&s["scope"]).to_owned(),
            text(&s["commit"]).chars().take(12).collect(),
            if s["ended"].is_null() { "running" } else { "ended" }.to_owned(),
            count(&s["hits"]),
            count(&s["misses"]),
            bytes(&s["bytes_in"]),
            time(&s["saved_s"]),
            time(&s["waited_s"]),
        ]
    };
    table(out, &head, sessions.as_array().into_iter().flatten().rev().map(row).collect());
}

/// A table whose first head is its title; nothing but the title if there are no rows.
fn table(out: &mut String, head: &[&str], rows: Vec<Vec<String>>) {
    let _ = write!(out, "<h2>{}</h2>", escape(head[0]));
    if rows.is_empty() {
        out.push_str("<p>none</p>");
        return;
    }
    out.push_str("<div><table><tr><th></th>");
    for cell in &head[1..] {
        let _ = write!(out, "<th>{}</th>", escape(cell));
    }
    out.push_str("</tr>");
    for row in rows {
        out.push_str("<tr>");
        for at in 0..head.len() {
            let cell = row.get(at).map_or("", String::as_str);
            let _ = write!(out, "<td>{}</td>", escape(cell));
        }
        out.push_str("</tr>");
    }
    out.push_str("</table></div>");
}

pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn count(value: &Value) -> String {
    show_count(number(value))
}

fn bytes(value: &Value) -> String {
    ByteSize(number(value)).to_string()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn words(value: &Value) -> String {
    let all: Vec<&str> = value.as_array().into_iter().flatten().map(text).collect();
    all.join(", ")
}
