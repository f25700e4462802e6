//! Who may come in: the host that was called, browsers, tokens, and the realm that follows.

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HOST, ORIGIN};

use crate::cache::realm::{Realm, RealmError, Wanted};
use crate::entry::Digest;
use crate::frontend::listener::Peer;
use crate::frontend::{Config, Frontend, Token};

/// Why somebody is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// The name that was called is not ours: a web page's trick, or a wrong setting.
    Host,
    /// A web page asks.
    Browser,
    NoToken,
    /// The token is good, but not for this.
    NotAllowed,
    Namespace,
}

/// What a request wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intent {
    Read,
    Write,
}

/// Somebody who was let in.
#[derive(Debug)]
pub(super) struct Guest {
    pub realm: Arc<Realm>,
    /// It came over the socket or showed a token that may write.
    pub is_trusted: bool,
    /// Its token is for one namespace.
    pub is_bound: bool,
}

/// What a request asks for, as far as that decides who may come in.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The host of an absolute request line.
    pub(super) authority: Option<&'a str>,
    /// The namespace that the URL names.
    pub(super) instance: Option<&'a str>,
    /// The upstream that the settings give its protocol.
    pub(super) upstream: Option<&'a str>,
    pub(super) intent: Intent,
}

impl Frontend {
    /// Lets a request in, or says why not.
    pub(super) fn admit(
        &self,
        peer: &Peer,
        headers: &HeaderMap,
        asked: &Asked<'_>,
    ) -> Result<Guest, Denied> {
        let Asked { authority, intent, .. } = *asked;
        let config = &self.inner.config;
        let token = match peer {
            Peer::Unix => None,
            Peer::Tcp(_) => {
                if !calls_us(authority, headers, &config.allow_host) {
                    return Err(Denied::Host);
                }
                if is_browser(headers) {
                    return Err(Denied::Browser);
                }
                find_token(config, headers)?
            }
        };
        let is_trusted = matches!(peer, Peer::Unix) || token.is_some();
        if intent == Intent::Write && token.is_some_and(|token| !token.write) {
            return Err(Denied::NotAllowed);
        }
        let realm = self.realm_for(token, asked)?;
        let is_bound = token.is_some_and(|token| token.namespace.is_some());
        Ok(Guest { realm, is_trusted, is_bound })
    }

    /// The realm of a namespace that was named, or of the token, or of the settings.
    fn realm_for(&self, token: Option<&Token>, asked: &Asked<'_>) -> Result<Arc<Realm>, Denied> {
        let Asked { instance, upstream, intent, .. } = *asked;
        let config = self.inner.cache.config();
        let own = token.and_then(|token| token.namespace.as_deref());
        let own = own.unwrap_or(&config.namespace);
        let trust = token.and_then(|token| token.trust.as_deref()).or(config.trust.as_deref());
        let bound = token.is_some_and(|token| token.namespace.is_some());
        let wanted = match instance {
            None => Wanted { namespace: own, trust, upstream },
            Some(named) if named == own => Wanted { namespace: own, trust, upstream },
            // A token that is bound to a namespace reads the one that it trusts, and no other.
            Some(named) if bound && (trust != Some(named) || intent == Intent::Write) => {
                return Err(Denied::NotAllowed);
            }
            Some(named) => Wanted { namespace: named, trust: None, upstream },
        };
        let realm = self.inner.cache.realms().resolve(wanted);
        realm.map_err(|RealmError::Namespace(_)| Denied::Namespace)
    }

    /// The token that a helper shows over TCP.
    pub(super) fn token_of(&self, secret: Option<&str>) -> Option<&Token> {
        secret.and_then(|secret| matching(&self.inner.config.tokens, secret))
    }
}

/// The token of a request; None where none is asked for.
fn find_token<'a>(config: &'a Config, headers: &HeaderMap) -> Result<Option<&'a Token>, Denied> {
    if config.tokens.is_empty() {
        return Ok(None);
    }
    let secret = headers.get(AUTHORIZATION).and_then(|h| h.to_str().ok()).and_then(secret_of);
    let secret = secret.ok_or(Denied::NoToken)?;
    matching(&config.tokens, &secret).map(Some).ok_or(Denied::NoToken)
}

/// Compares digests, so that the time it takes says nothing about the secret.
fn matching<'a>(tokens: &'a [Token], secret: &str) -> Option<&'a Token> {
    let shown = Digest::of(secret.as_bytes());
    tokens.iter().find(|token| Digest::of(token.secret.reveal().as_bytes()) == shown)
}

/// `Bearer TOKEN`, or the password of `Basic`.
fn secret_of(header: &str) -> Option<String> {
    let (scheme, rest) = header.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let bytes = base64::engine::general_purpose::STANDARD.decode(rest.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    text.split_once(':').map(|(_, password)| password.to_owned())
}

/// Whether every host that a request names is ours; one that names none, or says two things, is not
/// believed.
fn calls_us(authority: Option<&str>, headers: &HeaderMap, allowed: &[String]) -> bool {
    let mut named = headers.get_all(HOST).iter().map(|host| host.to_str().ok()).peekable();
    if authority.is_none() && named.peek().is_none() {
        return false;
    }
    authority.is_none_or(|host| is_our_host(Some(host), allowed))
        && named.all(|host| is_our_host(host, allowed))
}

/// An IP literal, a name that always means this machine, or a listed one.
fn is_our_host(host: Option<&str>, allowed: &[String]) -> bool {
    let Some(host) = host else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.trim_end_matches('.');
    name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || name.eq_ignore_ascii_case("host.docker.internal")
        || allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
}

/// Build tools send none of these; browsers always do when a page of somewhere else asks.
fn is_browser(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN)
        || headers.get("sec-fetch-site").is_some_and(|site| site != "none" && site != "same-origin")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_that_mean_this_machine_are_ours() {
        let allowed = ["cache.example.com".to_owned()];
        let ours = [
            "127.0.0.1:7878",
            "[::1]:7878",
            "10.0.0.7",
            "localhost",
            "LOCALHOST:1",
            "localhost.:80",
            "host.docker.internal:7878",
            "cache.example.com:443",
        ];
        for host in ours {
            assert!(is_our_host(Some(host), &allowed), "{host}");
        }
        for host in ["evil.example.com", "localhost.evil.com", "", "127.0.0.1.evil.com:7878"] {
            assert!(!is_our_host(Some(host), &allowed), "{host}");
        }
        assert!(!is_our_host(None, &allowed));
    }

    #[test]
    fn tokens_come_as_bearer_or_as_a_password() {
        assert_eq!(secret_of("Bearer abc"), Some("abc".into()));
        assert_eq!(secret_of("basic dTphYmM="), Some("abc".into()));
        for bad in ["abc", "Digest abc", "Basic !!!", "Basic dQ=="] {
            assert_eq!(secret_of(bad), None, "{bad}");
        }
    }
}
