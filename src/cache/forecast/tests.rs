//! When what is on its way is expected.

use super::*;
use crate::entry::RealmId;

fn forecast() -> Forecast {
    let realm = Realm {
        id: RealmId([0; 16]),
        namespace: "team".into(),
        upstream: None,
        trusted: None,
        elsewhere: Vec::new(),
    };
    let aim = Aim {
        realm: Arc::new(realm),
        scope: "app".into(),
        commit: "c1".into(),
        branch: "main".into(),
        default_branch: "main".into(),
    };
    Forecast::new(aim, Clock::manual(crate::units::Timestamp(1)), Arc::default())
}

#[test]
fn what_stands_far_back_is_expected_as_soon_as_it_can_be_brought_forward() {
    const KIB: u64 = 1 << 10;
    let forecast = forecast();
    let (near, far) = (Digest::of(b"near"), Digest::of(b"far"));
    let listed = |before: u64| Listed::new(300, 100 * KIB, before);
    forecast.list(HashMap::from([(near, listed(0)), (far, listed(100 << 20))]));
    let eta =
        |action, latency_ms, bytes_per_ms| match forecast.word(&action, latency_ms, bytes_per_ms) {
            Known::Coming { eta_ms, .. } => eta_ms,
            other => panic!("{other:?}"),
        };
    assert_eq!(eta(far, 50.0, 0.0), None, "nobody knows how fast the link is");
    assert_eq!(eta(near, 50.0, 1024.0), Some(100), "its turn comes first");
    assert_eq!(eta(far, 50.0, 1024.0), Some(50 + 2048));
    forecast.under_way_bytes.store(1 << 20, Ordering::Relaxed);
    assert_eq!(eta(far, 50.0, 1024.0), Some(50 + 1024 + 2048), "what is asked for comes first");
}
