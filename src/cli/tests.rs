//! The command line's shape: every command helps with examples first, and wrong usage is 2.

use super::*;

#[test]
fn the_tree_holds_together() {
    tree().debug_assert();
}

#[test]
fn help_shows_examples_first() {
    let mut tree = tree();
    tree.build();
    let root = tree.render_help().to_string();
    assert!(root.starts_with("Examples:\n  larder run -- go build"), "{root}");
    assert!(!root.contains("--detached"));
    for command in tree.get_subcommands_mut().filter(|command| command.get_name() != "help") {
        let help = command.render_help().to_string();
        assert!(help.starts_with("Examples:\n  "), "{}: {help}", command.get_name());
        assert!(command.get_about().is_some());
    }
}

#[test]
fn command_lines_mean_what_people_expect() {
    let parse = |line: &str| tree().try_get_matches_from(line.split(' '));
    let matches = parse("larder --memory 1GiB").unwrap();
    assert_eq!(raw::flags_of(&matches), [("memory".to_owned(), "1GiB".to_owned())]);
    let matches = parse("larder run --flush -- go build -o x ./...").unwrap();
    let (_, run) = matches.subcommand().unwrap();
    let words: Vec<_> = run.get_many::<OsString>("command").unwrap().collect();
    assert_eq!(words, ["go", "build", "-o", "x", "./..."]);
    assert_eq!(duration_of(run, "flush").unwrap(), Some(std::time::Duration::from_secs(30)));
    let matches = parse("larder run --flush=2m go test").unwrap();
    let (_, run) = matches.subcommand().unwrap();
    assert_eq!(duration_of(run, "flush").unwrap(), Some(std::time::Duration::from_secs(120)));
    for wrong in ["run", "purge", "purge --all --realm x", "stats --memory 1", "banana", "--banana"]
    {
        let error = parse(&format!("larder {wrong}")).unwrap_err();
        assert!(error.use_stderr(), "{wrong}");
    }
}

#[test]
fn only_go_is_told_at_once() {
    let is_helper =
        |line: &str| go::is_helper(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
    assert!(is_helper("larder go"));
    assert!(is_helper("larder go --namespace x"));
    for other in ["larder go --help", "larder go -h", "larder run go", "larder"] {
        assert!(!is_helper(other), "{other}");
    }
}

#[test]
fn gos_own_cache_is_where_go_keeps_it() {
    type Case<'a> = (&'a [(&'a str, &'a str)], bool, Option<&'a str>);
    let cases: [Case<'_>; 7] = [
        (&[("GOCACHE", "/c"), ("HOME", "/h")], false, Some("/c")),
        (&[("GOCACHE", "off"), ("HOME", "/h")], false, None),
        (&[("GOCACHE", "relative")], false, None),
        (&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")], false, Some("/x/go-build")),
        (&[("HOME", "/h")], false, Some("/h/.cache/go-build")),
        (&[("HOME", "/h")], true, Some("/h/Library/Caches/go-build")),
        (&[], false, None),
    ];
    for (variables, is_macos, dir) in cases {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        };
        let found = go::native_dir(&variable, is_macos);
        assert_eq!(found.as_deref(), dir.map(std::path::Path::new), "{variables:?}");
    }
}
