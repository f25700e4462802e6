//! A commit that is built again and again: its manifest stays in bounds, and hides nothing.

use std::sync::Arc;

use crate::backend::memory::MemoryBackend;
use crate::manifest::trail::{Trail, TrailRow};
use crate::worker::prefetcher::tests::support::{Machine, output, outputs, trail_name, trail_of};
use crate::worker::recorder::ROWS_FEW;
use crate::worker::recorder::tests::actions_of;

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
    a.close().await;
    let trail = trail_of(&backend);
    let rows: Vec<_> = trail.rows.iter().map(|row| (row.rows, row.complete)).collect();
    assert_eq!(rows, [(3, false), (20, false), (120, true), (20, false)]);
    let b = Machine::new(&backend);
    let session = b.begin("c4");
    let forecast = b.settled(&session).await;
    assert_eq!(forecast.lists(), 140);
    assert_eq!(b.hits(Some(&session), &outputs(1000, 20)).await, 20);
    b.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_earlier_builds_of_a_commit_used_is_bounded_by_what_a_build_uses() {
    let backend = Arc::new(MemoryBackend::new());
    let a = Machine::new(&backend);
    let tiny =
        |from: u64, count: u64| (from..from + count).map(|n| output(n, 16)).collect::<Vec<_>>();
    let many = ROWS_FEW as u64 - 10;
    // Where nothing tells what a build is, all of it stays.
    a.build_commit("c0", &tiny(0, many)).await;
    a.build_commit("c0", &tiny(10_000, 50)).await;
    assert_eq!(actions_of(&backend, "c0").len(), ROWS_FEW + 40);
    for commit in ["c1", "c2"] {
        a.build_commit(commit, &tiny(10_000, 50)).await;
    }
    assert!(!trail_of(&backend).rows[0].complete);
    let trail = Trail { rows: vec![], ..trail_of(&backend) };
    let whole = |n: u32| TrailRow {
        commit: n.to_string(),
        rows: 50,
        complete: true,
        ..TrailRow::default()
    };
    let trail = trail.merge(Trail { rows: (0..3).map(whole).collect(), ..Trail::default() });
    backend.insert(trail_name("team"), trail.encode());
    a.build_commit("c1", &tiny(0, many)).await;
    a.build_commit("c1", &tiny(20_000, 50)).await;
    let rows = actions_of(&backend, "c1");
    assert_eq!(rows.len(), ROWS_FEW);
    let newest: Vec<_> = tiny(20_000, 50).iter().map(|output| output.action).collect();
    assert_eq!(rows[..50], newest);
    a.close().await;
}
