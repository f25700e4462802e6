//! When what is on its way is expected.

use super::*;
use crate::cache::realm::Realm;
use crate::entry::RealmId;

fn aim(commit: &str) -> Aim {
    let realm = Realm::alone(RealmId([0; 16]), "team", None);
    Aim {
        realm: Arc::new(realm),
        scope: "app".into(),
        commit: commit.into(),
        branch: "main".into(),
        default_branch: "main".into(),
    }
}

fn forecast() -> Forecast {
    Forecast::new(aim("c1"), Clock::manual(crate::units::Timestamp(1)), Arc::default())
}

/// Two builds of different commits began on one cold machine. What both needed stood far back in the
/// first one's queue, and the second one's word for it was heard by nobody.
#[test]
fn what_a_build_waits_for_is_brought_forward_by_whoever_fetches_it() {
    let forecasts = Forecasts::new(Clock::manual(crate::units::Timestamp(1)), Arc::default());
    let [first, second, ended] = ["c1", "c2", "c3"].map(|commit| forecasts.open(aim(commit)));
    ended.nothing();
    let action = Digest::of(b"both need it");
    forecasts.name(action);
    assert_eq!(first.overtaking.take(), [action]);
    assert_eq!(second.overtaking.take(), [action]);
    assert_eq!(ended.overtaking.take(), []);
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
