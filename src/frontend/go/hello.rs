//! How a helper comes in: who it is, which realm it may use, what it is told.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::cache::realm::{Realm, Wanted};
use crate::cache::session::{Opening, Session};
use crate::frontend::Frontend;
use crate::frontend::listener::Peer;
use crate::telemetry::metrics::Protocol;
use crate::wire::go::{self as wire, Hello, Refused, Welcome};

/// A helper that was let in.
pub(super) struct Guest {
    pub(super) hello: Hello,
    pub(super) realm: Arc<Realm>,
    /// Whether it may store at all.
    pub(super) writes: bool,
    pub(super) is_local: bool,
    /// Whether it sees the store, so that a digest is all it needs to find an output.
    pub(super) sees_store: AtomicBool,
    pub(super) session: Option<Arc<Session>>,
    pub(super) welcome: Welcome,
}

pub(super) fn refused(reason: String) -> Refused {
    Refused { protocol: wire::PROTOCOL, version: env!("CARGO_PKG_VERSION").into(), reason }
}

/// Names this process's PID namespace; empty where there are none.
pub(super) fn pid_namespace() -> String {
    std::fs::read_link("/proc/self/ns/pid")
        .map(|link| link.to_string_lossy().into_owned())
        .unwrap_or_default()
}

impl Frontend {
    /// Lets a helper in, or says in words why not.
    pub(super) fn greet(&self, hello: &Hello, peer: &Peer) -> Result<Guest, String> {
        if hello.protocol != wire::PROTOCOL {
            return Err(format!(
                "the daemon is larder {} and this is {}; restart it with `larder stop`",
                env!("CARGO_PKG_VERSION"),
                hello.version
            ));
        }
        let is_local = matches!(peer, Peer::Unix);
        let token = self.token_of(hello.token.as_deref());
        if !is_local && token.is_none() {
            return Err("over TCP a token is needed (set LARDER_TOKEN)".into());
        }
        let config = self.inner.cache.config();
        let namespace = token
            .and_then(|token| token.namespace.as_deref())
            .or(hello.namespace.as_deref())
            .unwrap_or(&config.namespace);
        // A token that is bound to a namespace reads the one that it trusts, and no other.
        let is_bound = token.is_some_and(|token| token.namespace.is_some());
        let trust = token
            .and_then(|token| token.trust.as_deref())
            .or(hello.trust.as_deref().filter(|_| !is_bound))
            .or(config.trust.as_deref());
        let realms = self.inner.cache.realms();
        let upstream = hello.upstream.as_deref().or_else(|| self.upstream_of(Protocol::Go));
        let wanted = Wanted { namespace, trust, upstream };
        let realm = realms.resolve(wanted).map_err(|error| error.to_string())?;
        let warning = hello.upstream.as_ref().filter(|url| !realms.has_upstream(url)).map(|_| {
            "the daemon that runs was started with another upstream; this build gets a local cache of \
             its own, apart from the one of that daemon (`larder stop` ends that daemon)"
                .to_owned()
        });
        let writes = token.is_none_or(|token| token.write);
        let is_reading = hello.read_only || !writes;
        if !is_reading {
            // What this helper spools while no daemon is there is put by a later one.
            realms.remember(&realm);
        }
        let session = (hello.role == "go").then(|| self.session(hello, &realm, is_reading));
        let welcome = self.welcome(&realm, session.as_ref(), warning);
        if let Some(session) = session.as_ref().filter(|_| is_reading) {
            session.writes_nothing();
        }
        let sees_store = AtomicBool::new(is_local);
        Ok(Guest { hello: hello.clone(), realm, writes, is_local, sees_store, session, welcome })
    }

    fn session(&self, hello: &Hello, realm: &Arc<Realm>, is_reading: bool) -> Arc<Session> {
        // Who only reads must not keep another's build from being written down.
        let reading = if is_reading { "/reading" } else { "" };
        let derived = format!("{}@{}{reading}", hello.scope, hello.commit);
        let is_derived = hello.session.is_empty();
        let opening = Opening {
            id: if is_derived { &derived } else { &hello.session },
            is_derived,
            realm: realm.id,
            scope: &hello.scope,
            commit: &hello.commit,
            branch: &hello.branch,
            default_branch: &hello.default_branch,
            parents: &hello.parents,
        };
        self.inner.cache.open_session(realm, &opening)
    }

    pub(super) fn welcome(
        &self,
        realm: &Realm,
        session: Option<&Arc<Session>>,
        warning: Option<String>,
    ) -> Welcome {
        let store = self.inner.cache.store();
        Welcome {
            protocol: wire::PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            pid_namespace: pid_namespace(),
            store: store.dir().to_string_lossy().into_owned(),
            nonce: store.nonce().to_owned(),
            uid: rustix::process::geteuid().as_raw(),
            realms: realm.go_chain().map(|realm| realm.id.to_string()).collect(),
            session: session.map(|session| session.id.to_string()).unwrap_or_default(),
            http: self.inner.http.clone(),
            warning,
        }
    }
}
