//! The URL space, in one table:
//!
//! ```text
//! /[INSTANCE/]ac/HEX      actions       /[INSTANCE/]cas/HEX     content by SHA-256
//! /[INSTANCE/]kv/NAME     any tool's own keys; slashes within NAME are part of it
//! ```

use crate::entry::key::NAME_MAX;
use crate::entry::{Digest, Key, RealmId};
use crate::telemetry::metrics::Protocol;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub protocol: Protocol,
    /// The namespace that the path names, if it names one.
    pub instance: Option<String>,
    /// In no realm yet.
    pub key: Key,
}

/// Why a path names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("no such path; entries are under /kv/, /cas/ and /ac/")]
    Unknown,
    #[error("malformed path: segments must be plain text, without `.`, `..` or encoded slashes")]
    Path,
    #[error("malformed key: 64 hexadecimal digits are needed")]
    Digest,
    #[error("malformed key: 1 to {NAME_MAX} bytes are needed")]
    Name,
}

/// What a request's path names.
pub fn route(path: &str) -> Result<Target, RouteError> {
    let rest = path.strip_prefix('/').ok_or(RouteError::Path)?;
    let segments = rest.split('/').map(decode).collect::<Option<Vec<_>>>();
    let segments = segments.ok_or(RouteError::Path)?;
    let at = segments.iter().position(|s| matches!(s.as_str(), "ac" | "cas" | "kv"));
    let at = at.ok_or(RouteError::Unknown)?;
    let instance = (at > 0).then(|| segments[..at].join("/"));
    let id = &segments[at + 1..];
    let (protocol, key) = match segments[at].as_str() {
        "kv" => {
            let key = Key::opaque(RealmId::NONE, &id.join("/")).ok_or(RouteError::Name)?;
            (Protocol::Kv, key)
        }
        space => {
            let [hex] = id else { return Err(RouteError::Digest) };
            let digest = Digest::from_hex(hex).ok_or(RouteError::Digest)?;
            match space {
                "cas" => (Protocol::Cas, Key::content(digest)),
                _ => (Protocol::Ac, Key::action(RealmId::NONE, digest)),
            }
        }
    };
    Ok(Target { protocol, instance, key })
}

/// A segment in plain text. None if it is empty, climbs, or hides a slash or a control character.
fn decode(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let high = char::from(rest.next()?).to_digit(16)?;
                let low = char::from(rest.next()?).to_digit(16)?;
                u8::try_from(high << 4 | low).ok()?
            }
            plain => plain,
        });
    }
    let bad = bytes.iter().any(|b| b.is_ascii_control() || matches!(b, b'/' | b'\\'));
    let text = String::from_utf8(bytes).ok()?;
    (!bad && !matches!(text.as_str(), "" | "." | "..")).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(path: &str) -> Result<(Option<String>, String), RouteError> {
        route(path).map(|target| (target.instance, target.key.to_string()))
    }

    #[test]
    fn paths_name_entries() {
        let hex = "ab".repeat(32);
        let cas = format!("cas/{hex}");
        let cases = [
            (format!("/cas/{hex}"), Ok((None, cas.clone()))),
            (format!("/cas/{}", hex.to_uppercase()), Ok((None, cas.clone()))),
            (format!("/main/cas/{hex}"), Ok((Some("main".into()), cas.clone()))),
            (format!("/pr/17/ac/{hex}"), Ok((Some("pr/17".into()), format!("ac/{hex}")))),
            ("/kv/a/b c".into(), Ok((None, "kv/a/b c".into()))),
            ("/kv/a%20b".into(), Ok((None, "kv/a b".into()))),
            ("/kv/cas/x".into(), Ok((None, "kv/cas/x".into()))),
            ("/".into(), Err(RouteError::Path)),
            ("/status".into(), Err(RouteError::Unknown)),
            ("/kv/".into(), Err(RouteError::Path)),
            ("/kv".into(), Err(RouteError::Name)),
            ("/kv/../x".into(), Err(RouteError::Path)),
            ("/kv/%2e%2e/x".into(), Err(RouteError::Path)),
            ("/kv/a%2fb".into(), Err(RouteError::Path)),
            ("/kv/a%2Fb".into(), Err(RouteError::Path)),
            ("/kv/a%00b".into(), Err(RouteError::Path)),
            ("/kv/a%".into(), Err(RouteError::Path)),
            ("/kv/a//b".into(), Err(RouteError::Path)),
            ("/kv/a%ff".into(), Err(RouteError::Path)),
            (format!("/kv/{}", "x".repeat(481)), Err(RouteError::Name)),
            ("/cas/abc".into(), Err(RouteError::Digest)),
            (format!("/cas/{hex}/x"), Err(RouteError::Digest)),
            (format!("/cas/{}", "zz".repeat(32)), Err(RouteError::Digest)),
        ];
        for (path, expected) in cases {
            assert_eq!(named(&path), expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_panics_or_climbs(path in "/[ -~]{0,60}") {
            if let Ok(target) = route(&path) {
                let shown = format!("{}/{}", target.instance.unwrap_or_default(), target.key);
                prop_assert!(!shown.split('/').any(|s| s == ".." || s == "."));
            }
        }
    }
}
