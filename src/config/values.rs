//! How values are written: a text becomes a type, or a sentence on why not.
//!
//! Pure; knows no places, files or other settings. Addresses of upstreams are `upstream`'s.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::faults::quoted;
use super::paths::SOCKET_PATH_MAX;
use crate::git;
use crate::store::Limit;
use crate::telemetry::log;
use crate::units::{self, ByteSize, ParseError, Percent, Secret};

pub(super) fn socket_fits(path: &Path) -> Result<(), String> {
    let len = path.as_os_str().len();
    if len <= SOCKET_PATH_MAX {
        return Ok(());
    }
    let path = path.display();
    Err(format!("{path} has {len} bytes, and the path of a socket at most {SOCKET_PATH_MAX}"))
}

/// What a quantity's own error says, less the example, which the table has.
fn not(error: &ParseError) -> String {
    format!("{} is not {}", quoted(&error.written), error.what)
}

pub(super) fn size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|error| not(&error))
}

pub(super) fn limit(text: &str) -> Result<Limit, String> {
    let limit = match text.trim_end().ends_with('%') {
        true => text.parse::<Percent>().map(Limit::Share),
        false => text.parse::<ByteSize>().map(Limit::Size),
    };
    limit.map_err(|error| not(&error))
}

/// How much a store may take; with nothing, go would have no place for its outputs.
pub(super) fn disk(text: &str) -> Result<Limit, String> {
    match limit(text)? {
        Limit::Size(ByteSize(0)) | Limit::Share(Percent(0)) => {
            Err(format!("{} is no room at all", quoted(text)))
        }
        limit => Ok(limit),
    }
}

/// Zero is for ever, as sccache's users know it.
pub(super) fn idle(text: &str) -> Result<Duration, String> {
    let idle = units::parse_duration(text).map_err(|error| not(&error))?;
    Ok(if idle.is_zero() { Duration::MAX } else { idle })
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let port = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    port.map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
        .ok_or_else(|| format!("{} is not an IP address with a port", quoted(text)))
}

pub(super) fn admin(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" { Ok(None) } else { address(text).map(Some) }
}

/// Longest namespace; it is part of every path upstream.
const NAMESPACE_MAX: usize = 200;

/// Segments that would be taken for a space of larder's URLs, where a namespace may stand.
const RESERVED: [&str; 3] = ["kv", "cas", "ac"];

/// A namespace; the empty one is the unnamed one.
pub(super) fn namespace(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let name = quoted(text);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.len() > NAMESPACE_MAX {
        return Err(format!("{name} is longer than {NAMESPACE_MAX} bytes"));
    }
    for segment in text.split('/') {
        match segment {
            "" => return Err(format!("{name} has an empty segment")),
            "." | ".." => return Err(format!("{name} has a segment `{segment}`")),
            _ => {}
        }
        if let Some(c) = segment.chars().find(|c| !is_plain(*c)) {
            let c = quoted(&c.to_string());
            return Err(format!("{name} has a {c}; letters, digits, `.`, `_`, `-` and `/` may be"));
        }
    }
    let ends = [text.split('/').next(), text.split('/').next_back()];
    match RESERVED.iter().find(|word| ends.contains(&Some(**word))) {
        Some(word) => Err(format!("{name} begins or ends with `{word}`, which larder's URLs use")),
        None => Ok(text.to_owned()),
    }
}

pub(super) fn scope(text: &str) -> Result<String, String> {
    let is_right = text.len() <= NAMESPACE_MAX && !text.contains(char::is_control);
    is_right.then(|| text.to_owned()).ok_or_else(|| {
        format!("{} is longer than {NAMESPACE_MAX} bytes or not on one line", quoted(text))
    })
}

pub(super) fn commit(text: &str) -> Result<String, String> {
    git::object_id(text).ok_or_else(|| {
        format!(
            "{} is not a whole commit id; write all 40 or 64 digits, as `git rev-parse HEAD` \
             prints them",
            quoted(text)
        )
    })
}

pub(super) fn host(text: &str) -> Result<String, String> {
    let is_right = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if text.is_empty() || !text.chars().all(is_right) {
        return Err(format!("{} is not a host name alone", quoted(text)));
    }
    Ok(text.to_ascii_lowercase())
}

pub(super) fn uid(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{} is not the number of a user", quoted(text)))
}

pub(super) fn log_filter(text: &str) -> Result<String, String> {
    // A lone word that is no level would be taken for a module and silence all others.
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let is_plain = |word: &&str| !word.contains(['=', ':', '[', ']', '{', '}']);
    let mut plain = text.split(',').map(str::trim).filter(is_plain);
    if plain.any(|word| !is_level(word)) {
        return Err(format!("{} is not a log filter", quoted(text)));
    }
    match EnvFilter::try_new(text) {
        Ok(_) if !text.trim().is_empty() => Ok(text.to_owned()),
        Ok(_) | Err(_) => Err(format!("{} is not a log filter", quoted(text))),
    }
}

pub(super) fn log_format(text: &str) -> Result<log::Format, String> {
    match text {
        "text" => Ok(log::Format::Text),
        "json" => Ok(log::Format::Json),
        _ => Err(format!("{} is neither `text` nor `json`", quoted(text))),
    }
}

/// A token as a header can carry it. What is wrong is said without showing it.
pub(super) fn bearer(text: &str) -> Result<Secret, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("the secret is empty".to_owned());
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("the secret has a space or another character that no header carries".to_owned());
    }
    Ok(Secret::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_paths_that_no_url_of_ours_can_be_mistaken_for() {
        for right in ["", "a", "team/project", "A.b_c-9", "a/kv/b", "...", "kvs"] {
            assert_eq!(namespace(right), Ok(right.to_owned()));
        }
        let cases = [
            ("/a", "has an empty segment"),
            ("a/", "has an empty segment"),
            ("a//b", "has an empty segment"),
            ("a/./b", "has a segment `.`"),
            ("..", "has a segment `..`"),
            ("a b", "has a ` `"),
            ("a\nb", "has a `\\n`"),
            ("ä", "has a `ä`"),
            ("kv", "begins or ends with `kv`"),
            ("cas/x", "begins or ends with `cas`"),
            ("x/ac", "begins or ends with `ac`"),
        ];
        for (wrong, why) in cases {
            let problem = namespace(wrong).unwrap_err();
            assert!(problem.contains(why), "{problem}");
            assert!(!problem.contains('\n'));
        }
        assert!(namespace(&"x".repeat(201)).is_err());
    }

    #[test]
    fn a_filter_that_would_silence_everything_is_refused() {
        for right in ["info", "warn,larder::store=debug", "off", "larder[get{key=a}]=trace"] {
            assert!(log_filter(right).is_ok(), "{right}");
        }
        for wrong in ["", " ", "verbose", "info,loud", "larder=loud"] {
            assert!(log_filter(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_are_read_as_people_write_them() {
        assert_eq!(limit("50GiB"), Ok(Limit::Size(ByteSize::gib(50))));
        assert_eq!(limit("5 %"), Ok(Limit::Share(Percent(5))));
        assert!(limit("101%").is_err() && limit("lots").is_err());
        assert_eq!(disk("50GiB"), limit("50GiB"));
        assert!(disk("0").is_err() && disk("0%").is_err() && limit("0").is_ok());
        assert_eq!(idle("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(idle("0"), Ok(Duration::MAX));
        assert_eq!(address("localhost:80"), address("127.0.0.1:80"));
        assert!(address("[::1]:80").is_ok() && address(":80").is_err());
        assert_eq!(admin("off"), Ok(None));
        assert_eq!(host("Cache.Example.COM"), Ok("cache.example.com".to_owned()));
        assert!(host("https://x").is_err() && host("x:80").is_err() && host("").is_err());
        assert!(uid("1000").is_ok() && uid("root").is_err());
        assert!(bearer(" x\n").is_ok_and(|secret| secret.reveal() == "x"));
        assert!(bearer("a b").is_err() && bearer("\n").is_err());
    }
}
