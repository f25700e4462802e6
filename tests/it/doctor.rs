//! `larder doctor go` beside a go that says what it likes of itself.

use std::process::Output;

use crate::harness::{Home, LARDER};
use crate::support::program;

/// Puts a `go` into the home's path that answers `go env -json` with this version.
fn doctor(home: &Home, version: &str, args: &[&str]) -> Output {
    let bin = home.path().join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let cache = home.path().join("gocache");
    let told = serde_json::json!({
        "GOVERSION": version, "GOCACHEPROG": format!("{LARDER} go"), "GOFLAGS": "-trimpath",
        "GOCACHE": cache,
    });
    let script = format!("[ \"$1 $2\" = 'env -json' ] || exit 3\ncat <<'end'\n{told}\nend\n");
    program(&bin.join("go"), &script);
    let path = format!("{}:/usr/bin:/bin", bin.display());
    home.larder(args).env("PATH", path).output().unwrap()
}

#[test]
fn doctor_says_that_an_old_go_ignores_the_cache() {
    let home = Home::new();
    let _daemon = home.daemon(&[]);
    for (version, is_well) in [("go1.22.3", false), ("go1.23.9", false), ("go1.24.0", true)] {
        let output = doctor(&home, version, &["doctor", "go"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(if is_well { 0 } else { 1 }), "{version}: {text}");
        let line = text.lines().find(|line| line.contains(" go: ")).unwrap_or_default();
        assert!(line.contains(version), "{text}");
        assert_eq!(line.contains("silently ignores GOCACHEPROG"), !is_well, "{text}");
        assert_eq!(line.starts_with("wrong"), !is_well, "{text}");
        let output = doctor(&home, version, &["doctor", "go", "--json"]);
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["ok"], is_well, "{json}");
    }
}
