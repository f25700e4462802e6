//! A commit that is built again and again: its manifest hides nothing.

use std::sync::Arc;

use crate::backend::memory::MemoryBackend;
use crate::worker::prefetcher::tests::support::{Machine, outputs, trail_of};

/// A commit that was edited and built all day lists far more than a build uses. Every build of what came
/// after it was of a part, next to that one, and was not looked at for two weeks.
#[tokio::test(start_paused = true)]
async fn a_commit_of_many_edits_hides_no_build_that_came_after_it() {
    let backend = Arc::new(MemoryBackend::new());
    let a = Machine::new(&backend);
    a.build_commit("c0", &outputs(0, 20)).await;
    for edit in 0..6 {
        a.build_commit("c1", &outputs(100 * edit, 20)).await;
    }
    a.build_commit("c2", &outputs(1000, 20)).await;
    a.build_commit("c3", &outputs(2000, 3)).await;
    let trail = trail_of(&backend);
    let rows: Vec<_> = trail.rows.iter().map(|row| (row.rows, row.complete)).collect();
    assert_eq!(rows, [(3, false), (20, false), (120, true), (20, false)]);
    for again in [false, true] {
        if again {
            a.build_commit("c1", &outputs(5000, 20)).await;
            assert_eq!(trail_of(&backend).rows[0].commit, "c1");
        }
        let b = Machine::new(&backend);
        let session = b.begin("c4");
        let forecast = b.settled(&session).await;
        assert_eq!(forecast.lists(), if again { 163 } else { 143 });
        assert_eq!(b.hits(Some(&session), &outputs(1000, 20)).await, 20);
        b.close().await;
    }
    a.close().await;
}
