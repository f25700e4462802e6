//! In which order what is known of a build is fetched.

use std::sync::{Arc, Mutex};

use super::support::{Machine, manifest_of, outputs};
use crate::backend::Space;
use crate::backend::memory::{Call, MemoryBackend};
use crate::manifest::Place;

#[tokio::test(start_paused = true)]
async fn what_is_used_first_is_asked_for_first_whichever_pack_it_is_in() {
    let backend = Arc::new(MemoryBackend::new());
    let a = Machine::new(&backend);
    for n in 0..12 {
        a.build_commit("c1", &outputs(n * 10, 10)).await;
    }
    a.close().await;
    let manifest = manifest_of(&backend, "c1");
    let mut wanted = Vec::new();
    for row in &manifest.rows {
        let Place::Pack { pack, .. } = row.place else { continue };
        let id = manifest.packs[pack as usize].digest.to_string();
        if !wanted.contains(&id) {
            wanted.push(id);
        }
    }
    assert!(wanted.len() > 6, "{} packs", wanted.len());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    backend.fault_by(move |call, name| {
        if call == Call::Get && name.space == Space::Cas {
            seen.lock().unwrap().push(name.id.clone());
        }
        None
    });
    let b = Machine::new(&backend);
    let session = b.begin("c1");
    b.settled(&session).await;
    b.close().await;
    assert_eq!(*asked.lock().unwrap(), wanted);
}
