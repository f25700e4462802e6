//! Cold machines: what an earlier build used is there before go asks for it.

use super::{Machine, number, write_module};
use crate::harness::Home;
use crate::support::git::{Origin, has_git};
use crate::support::install;

#[test]
fn a_cold_machine_fetches_what_an_earlier_build_used_before_go_asks() {
    let Some(go) = install::go(install::GO_1_26) else { return };
    if !has_git() {
        return;
    }
    let origin = Origin::new();
    write_module(&origin.path(), false);
    origin.commit();
    let home = Home::new();
    let central = home.daemon(&[]);

    let a = Machine::new(&go);
    let daemon = a.home.daemon(&["--upstream", &central.url()]);
    let (built, _) = a.build(&origin.clone());
    daemon.flush();
    let stats = daemon.stats();
    assert_eq!(number(&stats, &["journal", "owed_entries"]), 0);
    drop(daemon);

    let b = Machine::new(&go);
    let daemon = b.home.daemon(&["--upstream", &central.url()]);
    let before = number(&central.stats(), &["requests", "ac", "gets"]);
    let (again, said) = b.build(&origin.clone());
    assert_eq!(said, "", "compiled on a cold machine");
    assert!(again == built);
    let session = &daemon.stats()["sessions"][0];
    assert!(session["prefetched"].as_u64().unwrap() > 20, "{session}");
    let asked = number(&central.stats(), &["requests", "ac", "gets"]) - before;
    assert!(asked < 20, "{asked} actions were asked for one by one: {session}");
}
