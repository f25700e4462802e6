//! Which entries a purge means, as it is asked for: by age, writer and namespace. The same for the
//! daemon and for who opens the store without one.

use std::time::Duration;

use serde_json::Value;

use crate::cache::realm;
use crate::entry::RealmId;
use crate::store::Store;
use crate::store::verify::Purge;

/// Removes entries from the store; upstream keeps its own. Returns how many; an error for a name that
/// cannot be a namespace's. Blocks.
pub fn purge(store: &Store, request: &Value) -> Result<u64, String> {
    let realms = match request["realm"].as_str() {
        None => None,
        Some(name) if !realm::is_namespace(name) => {
            return Err(realm::RealmError::Namespace(name.to_owned()).to_string());
        }
        Some(name) => {
            let named = realm::named(store, name).into_iter();
            Some(named.chain(RealmId::from_hex(name)).collect())
        }
    };
    Ok(store.purge(&Purge {
        older_than: request["older_than_s"].as_u64().map(Duration::from_secs),
        realms,
        writer: request["writer"].as_str().map(str::to_owned),
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::cache::realm::{Realms, Wanted};
    use crate::entry::{Class, Key, Meta};
    use crate::store::{Config, Limit};
    use crate::units::{ByteSize, Clock, Timestamp};

    /// The daemon took a namespace to be the realm of it that trusts nobody: `larder purge --realm
    /// pr/17` removed nothing of what builds with `--trust main` had left.
    #[test]
    fn a_namespace_is_purged_whomever_it_trusts() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Some(Limit::Size(ByteSize::gib(1)));
        let settings = Config { dir: dir.path().join("store"), disk, floor: None };
        let clock = Clock::manual(Timestamp::from_seconds(1_000_000));
        let store = Store::open(&settings, clock.clone(), Arc::default()).unwrap();
        let realms = Realms::new(Vec::new(), Vec::new(), store.clone());
        let put = |namespace, trust, name| {
            let realm = realms.resolve(Wanted { namespace, trust, upstream: None }).unwrap();
            let mut staged = store.stage();
            staged.write(b"body").unwrap();
            let body = staged.finish();
            let meta = Meta::new(body.digest, body.size, clock.now(), Class::Other);
            store.put(&Key::opaque(realm.id, name).unwrap(), body, &meta, None).unwrap();
            realm.id
        };
        put("pr/17", None, "alone");
        put("pr/17", Some("main"), "trusting");
        put("pr/18", Some("release"), "next");
        let main = put("main", None, "main's");
        let realm = |name: &str| json!({ "realm": name });
        assert_eq!(purge(&store, &realm("pr/17")), Ok(2));
        assert_eq!(purge(&store, &realm("pr/17")), Ok(0));
        assert_eq!(purge(&store, &realm(&main.to_string())), Ok(1), "by its number");
        // What was read of a namespace that is only trusted is kept as its own.
        let trusted = RealmId::of("", "release", None);
        let mut staged = store.stage();
        staged.write(b"body").unwrap();
        let body = staged.finish();
        let meta = Meta::new(body.digest, body.size, clock.now(), Class::Other);
        store.put(&Key::opaque(trusted, "read").unwrap(), body, &meta, None).unwrap();
        assert_eq!(purge(&store, &realm("release")), Ok(1));
        assert!(purge(&store, &realm("../pr")).unwrap_err().contains("is not a namespace"));
        assert_eq!(purge(&store, &json!({})), Ok(1));
        store.close();
    }
}
