//! A request's way over HTTP: route, admit, ask the cache, respond. The same for `kv`, `cas` and
//! `ac`, whose values are opaque here.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use http::request::Parts;
use http::{Method, Request};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::cache::PutError;
use crate::cache::policy::{ACTION_MAX, is_believed_by_go};
use crate::entry::{Incoming, Kind, Lookup};
use crate::frontend::access::{Asked, Denied, Guest, Intent};
use crate::frontend::listener::Peer;
use crate::frontend::request::Coming;
use crate::frontend::respond::{self, Answer};
use crate::frontend::route::{Target, route};
use crate::frontend::{Frontend, request};
use crate::store::StoreError;
use crate::telemetry::metrics::Protocol;

/// Serves the requests of one connection.
#[derive(Clone)]
pub(super) struct Service {
    frontend: Frontend,
    peer: Arc<Peer>,
}

impl Service {
    pub(super) fn new(frontend: Frontend, peer: Peer) -> Self {
        Self { frontend, peer: Arc::new(peer) }
    }
}

impl hyper::service::Service<Request<hyper::body::Incoming>> for Service {
    type Response = Answer;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Answer, Infallible>>;

    fn call(&self, request: Request<hyper::body::Incoming>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = Coming::new(&parts, body, service.frontend.inner.cache.tasks());
            let answer = service.frontend.answer(&service.peer, &parts, body).await;
            tracing::debug!(
                method = %parts.method,
                path = parts.uri.path(),
                status = answer.status().as_u16(),
                "request"
            );
            Ok(answer)
        })
    }
}

impl Frontend {
    async fn answer(&self, peer: &Peer, parts: &Parts, body: Coming) -> Answer {
        let intent = match parts.method {
            Method::GET | Method::HEAD => Intent::Read,
            Method::PUT | Method::POST | Method::DELETE => Intent::Write,
            _ => return respond::wrong_method(),
        };
        let target = match route(parts.uri.path()) {
            Ok(target) => target,
            Err(error) => return respond::malformed(error),
        };
        let authority = parts.uri.authority().map(http::uri::Authority::as_str);
        let instance = target.instance.as_deref();
        let upstream = self.upstream_of(target.protocol);
        let asked = Asked { authority, instance, upstream, intent };
        let guest = match self.admit(peer, &parts.headers, &asked) {
            Ok(guest) => guest,
            Err(why) => return respond::denied(why),
        };
        match parts.method {
            Method::GET => self.get(parts, &guest, &target).await,
            Method::HEAD => self.head(&guest, &target).await,
            // Content has no namespace: whoever is confined to one would take it from all others.
            Method::DELETE if guest.is_bound && target.key.kind == Kind::Content => {
                respond::denied(Denied::NotAllowed)
            }
            Method::DELETE => {
                respond::deleted(self.inner.cache.delete(&guest.realm, &target.key).await)
            }
            _ if request::has_bad_length(&parts.headers) => respond::bad_length(),
            _ => self.put(&guest, &target, body.pieces()).await,
        }
    }

    /// The upstream that the settings give this protocol; None: the first one.
    pub(super) fn upstream_of(&self, protocol: Protocol) -> Option<&str> {
        let name = match protocol {
            Protocol::Kv => "kv",
            Protocol::Cas | Protocol::Ac => "bazel",
            Protocol::Go => "go",
        };
        let rules = &self.inner.cache.config().frontends;
        rules.iter().find(|(protocol, _)| protocol == name).map(|(_, upstream)| upstream.as_str())
    }

    async fn get(&self, parts: &Parts, guest: &Guest, target: &Target) -> Answer {
        let (cache, protocol) = (&self.inner.cache, target.protocol);
        let lookup = if request::wants_no_old(&parts.headers) {
            cache.get_fresh(protocol, &guest.realm, &target.key).await
        } else {
            cache.get(protocol, &guest.realm, &target.key).await
        };
        match lookup {
            Lookup::Hit(blob, found) => respond::hit(&parts.method, &parts.headers, blob, found),
            Lookup::Miss(why) => respond::miss(why),
        }
    }

    async fn head(&self, guest: &Guest, target: &Target) -> Answer {
        match self.inner.cache.contains(&guest.realm, &target.key).await {
            Ok(len) => respond::there(len),
            Err(why) => respond::miss(why),
        }
    }

    async fn put(&self, guest: &Guest, target: &Target, mut body: Incoming) -> Answer {
        let believed = target.protocol == Protocol::Ac
            && !guest.is_trusted
            && guest.realm.writes_to().is_some();
        // Its places are given back when it is kept.
        let mut places = None;
        if believed {
            let value = match collect(body, &self.inner.gathering, &mut places).await {
                Ok(value) => value,
                Err(error) => {
                    if let PutError::NotStored(_) = error {
                        self.inner.cache.metrics().not_stored.inc();
                    }
                    return respond::put(Err(error));
                }
            };
            if is_believed_by_go(&value) {
                return respond::go_entry_refused();
            }
            body = Incoming::bytes(value);
        }
        let cache = &self.inner.cache;
        respond::put(cache.put(target.protocol, &guest.realm, &target.key, body, |_| {}).await)
    }
}

/// An action's value as a whole. It takes places among the bytes that are gathered at once.
async fn collect<'a>(
    body: Incoming,
    room: &'a Semaphore,
    places: &mut Option<SemaphorePermit<'a>>,
) -> Result<Bytes, PutError> {
    let too_large = || PutError::TooLarge { limit: ACTION_MAX };
    if body.len.is_some_and(|len| len > ACTION_MAX) {
        return Err(too_large());
    }
    let mut chunks = body.chunks;
    let (mut got, mut bytes, mut is_full) = (0, Vec::new(), false);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(PutError::Client)?;
        got += chunk.len() as u64;
        if got > ACTION_MAX {
            return Err(too_large());
        }
        // What finds no room is read all the same, so that its sender can go on.
        match room.try_acquire_many(u32::try_from(chunk.len()).unwrap_or(u32::MAX)) {
            Ok(place) if !is_full => {
                match places {
                    Some(places) => places.merge(place),
                    None => *places = Some(place),
                }
                bytes.extend_from_slice(&chunk);
            }
            _ => {
                (bytes, is_full) = (Vec::new(), true);
                *places = None;
            }
        }
    }
    if is_full { Err(PutError::NotStored(StoreError::Full)) } else { Ok(bytes.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of a crowd could make the daemon hold 32 MiB for as long as it liked.
    #[tokio::test]
    async fn actions_that_are_gathered_share_a_limit_and_give_it_back() {
        let room = Semaphore::new(10);
        let body = |len| Incoming::bytes(vec![7; len].into());
        let mut places = None;
        assert_eq!(collect(body(7), &room, &mut places).await.unwrap().len(), 7);
        assert_eq!(room.available_permits(), 3);
        let mut others = None;
        let refused = collect(body(4), &room, &mut others).await.unwrap_err();
        assert!(matches!(refused, PutError::NotStored(StoreError::Full)), "{refused}");
        assert_eq!(collect(body(3), &room, &mut others).await.unwrap().len(), 3);
        drop((places, others));
        assert_eq!(room.available_permits(), 10);
    }
}
