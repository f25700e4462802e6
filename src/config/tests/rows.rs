//! The table of settings, the example file and the command line are of one mind.

use super::*;
use crate::config::table;

const EXAMPLE: &str = include_str!("../../../deploy/config.example.toml");

/// The example with every setting in force: lines of `#` and a letter or bracket.
fn uncommented() -> String {
    let bare = |line: &str| {
        let setting = line.strip_prefix('#');
        setting
            .filter(|rest| rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()))
            .map(str::to_owned)
    };
    EXAMPLE.lines().map(|line| bare(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

#[test]
fn the_example_says_nothing_until_it_is_uncommented() {
    let plain = Machine::new().config(EXAMPLE).load();
    let defaults = Machine::new().load();
    assert_eq!(plain.cache, defaults.cache);
    assert!(plain.frontend.listen_is_default && plain.upstreams.is_empty());
    assert!(plain.explain().iter().all(|line| line.ends_with("(default)")));
}

#[test]
fn every_setting_stands_in_the_example_and_all_of_it_is_valid() {
    let text = uncommented();
    let machine = Machine::new();
    let root = machine.dir.path().display();
    let moved = text
        .replace("\"/run/secrets", &format!("\"{root}/s"))
        .replace("\"/etc/larder", &format!("\"{root}/e"));
    let machine = machine
        .file("s/larder", "token")
        .file("s/larder-user", "me:pw")
        .file("e/tls.crt", "")
        .file("e/tls.key", "")
        .file("e/ca.crt", "")
        .file("e/client.crt", "")
        .file("e/client.key", "")
        .file("e/tokens.toml", "[[token]]\nname='a'\nsecret='b'")
        .config(moved);
    let config = machine.load();
    let has = |key: &str| text.lines().any(|line| line.starts_with(&format!("{key} = ")));
    let tables = [&table::SETTINGS[..], &table::UPSTREAM, &table::FRONTEND, &table::CLASS];
    for row in tables.into_iter().flatten() {
        match row.kind {
            table::Kind::Tables => assert!(text.contains(&format!("\n[[{}]]\n", row.key()))),
            _ => assert!(has(&row.key()), "{} is missing", row.key()),
        }
    }
    // What is shown as a default is the default.
    let defaults = Machine::new().load();
    assert_eq!(config.frontend.listen, defaults.frontend.listen);
    assert_eq!(config.admin.listen, defaults.admin.listen);
    assert_eq!(config.worker, defaults.worker);
    assert_eq!(config.log.filter, defaults.log.filter);
    assert_eq!((config.cache.read_only, config.frontend.insecure), (false, false));
    let names: Vec<_> = config.upstreams.iter().map(|up| up.name.as_str()).collect();
    assert_eq!(names, ["central", "legacy"]);
    for name in table::FRONTENDS.iter().chain(&crate::entry::Class::ALL.map(|c| c.name())) {
        assert!(EXAMPLE.contains(name), "{name} is missing");
    }
}

#[test]
fn every_row_of_the_table_works_as_flag_variable_and_key() {
    for row in &table::SETTINGS {
        let machine = |of: &dyn Fn(Machine) -> Machine| {
            let tokens = "[[token]]\nname='a'\nsecret='b'";
            let machine = Machine::new().file("tokens.toml", tokens);
            let example = match row.name {
                "tokens" => machine.path("tokens.toml").display().to_string(),
                "tls-cert" | "tls-key" => machine.path("tokens.toml").display().to_string(),
                _ => row.example.to_owned(),
            };
            let other = match row.name {
                "tls-cert" => "tls-key",
                "tls-key" => "tls-cert",
                _ => "",
            };
            let machine = if other.is_empty() { machine } else { machine.flag(other, "/dev/null") };
            let toml = row.toml_example().replace(row.example, &example);
            let toml = toml.replace(" and below it ", "\n");
            of(machine.config("").file("value", &example).file("toml", toml))
        };
        let value = |machine: &Machine| fs::read_to_string(machine.path("value")).unwrap();
        machine(&|m| {
            let v = value(&m);
            m.flag(row.name, &v)
        })
        .load();
        machine(&|m| {
            let v = value(&m);
            m.env(&row.variable(), &v)
        })
        .load();
        machine(&|m| {
            let t = fs::read(m.path("toml")).unwrap();
            m.config(t)
        })
        .load();
    }
}

#[test]
fn the_command_line_is_made_of_the_table() {
    let names: Vec<&str> = table::SETTINGS.iter().map(|row| row.name).collect();
    let command = || clap::Command::new("larder").args(raw::args(&names));
    command().debug_assert();
    let line = "larder --read-only --disk 1GiB --listen a,b --listen c --config f";
    let matches = command().try_get_matches_from(line.split(' ')).unwrap();
    let flags = raw::flags_of(&matches);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        flags,
        [
            pair("listen", "a,b"),
            pair("listen", "c"),
            pair("disk", "1GiB"),
            pair("read-only", "true"),
            pair("config", "f"),
        ]
    );
    let sources = Sources::from_process(flags);
    assert_eq!(sources.config_file.as_deref(), Some(Path::new("f")));
    assert_eq!(sources.flags.len(), 4);
    for line in ["larder --dsik 1", "larder --read-only=x", "larder --disk"] {
        let error = command().try_get_matches_from(line.split(' ')).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
    }
    // A subcommand takes only some.
    let few = clap::Command::new("larder").args(raw::args(&["store"]));
    let matches = few.try_get_matches_from(["larder", "--store", "s"]).unwrap();
    assert_eq!(raw::flags_of(&matches), [pair("store", "s")]);
}
