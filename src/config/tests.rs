//! What a user may rely on: which place wins, what faults say and where, that secrets stay hidden.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::*;
use crate::backend::{Credentials, WriteMethod};
use crate::cache::{ClassRule, Share};
use crate::frontend::Listen;
use crate::store::Limit;
use crate::units::{ByteSize, Percent};

mod faults;

mod rows;

const CANARY: &str = "canary-5ecret";

/// A machine with a home, `/etc` and a configuration file.
struct Machine {
    dir: tempfile::TempDir,
    env: Vec<(OsString, OsString)>,
    flags: Vec<(String, String)>,
    config_file: Option<PathBuf>,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let env = vec![("HOME".into(), dir.path().join("home").into())];
        Self { dir, env, flags: Vec::new(), config_file: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(self, name: &str, text: impl AsRef<[u8]>) -> Self {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        self
    }

    /// The file that `--config` names.
    fn config(mut self, text: impl AsRef<[u8]>) -> Self {
        self.config_file = Some(self.path("c.toml"));
        self.file("c.toml", text)
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.push((name.into(), value.into()));
        self
    }

    fn load_with(&self, secrets: Secrets) -> Result<Config, Faults> {
        let sources = Sources {
            flags: self.flags.clone(),
            env: self.env.clone(),
            config_file: self.config_file.clone(),
        };
        load(&sources, &self.path("etc/config.toml"), secrets)
    }

    fn load(&self) -> Config {
        self.load_with(Secrets::Read).unwrap_or_else(|faults| panic!("{faults}"))
    }

    /// The faults, with the machine's directory shown as `D`.
    fn faults(&self) -> Vec<String> {
        let faults = self.load_with(Secrets::Read).expect_err("there is a fault");
        let dir = self.dir.path().display().to_string();
        faults.to_string().lines().map(|line| line.replace(&dir, "D")).collect()
    }
}

#[test]
fn defaults_are_those_of_the_contract() {
    let machine = Machine::new();
    let config = machine.load();
    assert_eq!(config.store.dir, System::OURS.cache(&machine));
    assert_eq!((config.store.disk, config.store.floor, config.cache.memory), (None, None, None));
    assert_eq!(config.frontend.listen, [Listen::Tcp("127.0.0.1:7878".parse().unwrap())]);
    assert!(config.frontend.listen_is_default && config.frontend.tokens.is_empty());
    assert_eq!(config.admin.listen, Some("127.0.0.1:7879".parse().unwrap()));
    assert_eq!(config.worker.idle_exit, Duration::from_secs(1800));
    assert_eq!((config.log.filter.as_str(), config.log.format), ("info", log::Format::Text));
    assert_eq!((config.cache.namespace.as_str(), config.cache.trust), ("", None));
    assert!(config.upstreams.is_empty() && config.client.daemon.is_none());
    assert_eq!(config.client.socket, config.frontend.socket);
    assert!(!config.cache.read_only && config.client.config_file.is_none());
}

#[test]
fn sockets_are_those_that_were_passed_to_this_process() {
    let passed = |pid: &str, count: &str| {
        let machine = Machine::new().env("LISTEN_PID", pid).env("LISTEN_FDS", count);
        machine.env("LISTEN_FDNAMES", "web:")
    };
    let own = std::process::id().to_string();
    assert_eq!(passed(&own, "3").load().frontend.passed, ["web", "", "unknown"]);
    for (pid, count) in [("1", "2"), ("x", "2"), ("", "2"), (own.as_str(), "0")] {
        assert!(passed(pid, count).load().frontend.passed.is_empty(), "{pid} {count}");
    }
    assert!(Machine::new().env("LISTEN_FDS", "1").load().frontend.passed.is_empty(), "whose?");
    for count in ["17", "-1", "many"] {
        let faults = passed(&own, count).faults();
        assert_eq!(faults, [format!("LISTEN_FDS: `{count}` is no number of sockets up to 16")]);
    }
}

use paths::System;

impl System {
    fn cache(self, machine: &Machine) -> PathBuf {
        match self {
            Self::Xdg => machine.path("home/.cache/larder"),
            Self::MacOs => machine.path("home/Library/Caches/larder"),
        }
    }
}

#[test]
fn the_stronger_place_wins() {
    let etc = || Machine::new().file("etc/config.toml", "memory = '1MiB'\ndisk = '10%'");
    let user = || {
        let machine = etc().env("XDG_CONFIG_HOME", "/nowhere");
        let home = machine.path("xdg").display().to_string();
        machine.env("XDG_CONFIG_HOME", &home).file("xdg/larder/config.toml", "memory = '2MiB'")
    };
    let named = || user().config("memory = '3MiB'\nread_only = true\nallow_uid = [1, '2']");
    let variable = || named().env("LARDER_MEMORY", "4MiB").env("LARDER_ALLOW_UID", "3, 4");
    let flag = || variable().flag("memory", "5MiB");
    let cases = [
        (etc(), 1, "etc/config.toml:1"),
        (user(), 2, "xdg/larder/config.toml:1"),
        (named(), 3, "c.toml:1"),
        (variable(), 4, "LARDER_MEMORY"),
        (flag(), 5, "--memory"),
    ];
    for (machine, mib, origin) in cases {
        let config = machine.load();
        assert_eq!(config.cache.memory, Some(ByteSize::mib(mib)), "{origin}");
        let from = config.explain_json()["settings"]["memory"]["from"].clone();
        assert!(from.as_str().unwrap().ends_with(origin), "{from}");
    }
    // One file counts, and none of the others.
    assert_eq!(etc().load().store.disk, Some(Limit::Share(Percent(10))));
    assert_eq!(user().load().store.disk, None);
    assert_eq!(named().load().frontend.allow_uid, [1, 2]);
    assert_eq!(variable().load().frontend.allow_uid, [3, 4]);
    assert!(flag().load().cache.read_only);
    assert!(!flag().env("LARDER_READ_ONLY", "off").load().cache.read_only);
    assert!(flag().env("LARDER_READ_ONLY", "").load().cache.read_only, "empty is unset");
    // `--memory "$UNSET"` counted for `run` alone: its daemon, told by a variable, took the file's.
    let empty = named().flag("memory", "").flag("namespace", "").load();
    assert_eq!(empty.cache.memory, Some(ByteSize::mib(3)), "an empty flag is as good as none");
}

#[test]
fn no_home_is_a_fault_only_where_one_is_needed() {
    let homeless = || Machine { env: Vec::new(), ..Machine::new() };
    let faults = homeless().faults();
    assert_eq!(
        faults,
        ["the store has no place, because neither HOME nor XDG_CACHE_HOME is set; write for \
          example `--store /var/cache/larder`"]
    );
    let config = homeless().flag("store", "/s").load();
    assert_eq!(config.client.store, Path::new("/s"));
    assert!(config.client.daemon_log.starts_with("/tmp"));
    assert!(homeless().flag("store", "~/s").faults()[0].contains("needs HOME"));
}

#[test]
fn relative_paths_count_from_where_they_were_written() {
    let config = Machine::new().config("store = 's'\nlisten = ['unix:l.sock']");
    let loaded = config.load();
    assert_eq!(loaded.store.dir, config.path("s"));
    assert_eq!(loaded.frontend.listen, [Listen::Unix(config.path("l.sock"))]);
    let home = Machine::new().env("LARDER_STORE", "~/s");
    assert_eq!(home.load().store.dir, home.path("home/s"));
    let here = std::path::absolute("s").unwrap();
    assert_eq!(Machine::new().flag("store", "./s").load().store.dir, here);
    let long = format!("/{}", "x".repeat(200));
    let faults = Machine::new().flag("socket", &long).faults();
    assert!(faults[0].contains("the path of a socket at most"), "{faults:?}");
}

#[test]
fn upstreams_are_named_and_only_the_first_gets_the_token() {
    let urls = "https://a.example/x/,http://b.example:80,https://a.example/y";
    let config = Machine::new()
        .config("[[upstream]]\nurl = 'https://c.example'")
        .env("LARDER_UPSTREAM_TOKEN", CANARY)
        .flag("upstream", urls)
        .load();
    let seen: Vec<_> =
        config.upstreams.iter().map(|up| (up.name.as_str(), up.url.as_str())).collect();
    assert_eq!(
        seen,
        [
            ("a.example", "https://a.example/x"),
            ("b.example", "http://b.example:80"),
            ("a.example-2", "https://a.example/y"),
        ]
    );
    let bearer = Credentials::Bearer(Secret::new(CANARY.to_owned()));
    let given: Vec<_> = config.upstreams.iter().map(|up| up.credentials == bearer).collect();
    assert_eq!(given, [true, false, false]);
    assert_eq!(config.client.upstream.as_deref(), Some("https://a.example/x"));
}

#[test]
fn rules_name_upstreams_and_test_means_both_halves() {
    let text = "[[upstream]]\nurl = 'http://a'\nwrite = false\nwrite_method = 'post'\n\
                user_file = 'user'\n[[upstream]]\nname = 'b'\nurl = 'http://b'\n\
                [frontend.gradle]\nupstream = 'b'\n[class.test]\nshare = 'off'\n[class.vet]";
    let config = Machine::new().file("user", "me:pass:word\n").config(text).load();
    let first = &config.upstreams[0];
    assert_eq!((first.write, first.write_method), (false, WriteMethod::Post));
    let password = Secret::new("pass:word".to_owned());
    assert_eq!(first.credentials, Credentials::Basic { user: "me".to_owned(), password });
    assert_eq!(config.cache.frontends, [("gradle".to_owned(), "b".to_owned())]);
    let rule = |class: &str, share| ClassRule { class: class.to_owned(), share, upstream: None };
    assert_eq!(
        config.cache.classes,
        [rule("test_log", Share::Off), rule("test", Share::Off), rule("vet", Share::Upstream)]
    );
    let replaced = Machine::new().config("[frontend.go]\nupstream = 'central'");
    let faults = replaced.flag("upstream", "http://x").faults();
    let expected = "no upstream is named `central`: --upstream replaces those of the file";
    assert!(faults[0].ends_with(expected), "{faults:?}");
}

#[test]
fn a_started_daemon_is_told_the_same_and_nothing_else() {
    let machine = Machine::new()
        .config("memory = '1GiB'")
        .env("LARDER_STORE", "relative")
        .env("LARDER_UPSTREAM_TOKEN", CANARY)
        .env("LARDER_TOKEN", CANARY)
        .env("XDG_RUNTIME_DIR", "/r")
        .env("PATH", "/bin")
        .env("AWS_SECRET_ACCESS_KEY", "x")
        .flag("upstream", "http://a,http://b")
        .flag("read-only", "true");
    let config = machine.load();
    let env = config.child_env();
    let names: Vec<_> = env.iter().map(|(name, _)| name.to_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "HOME",
            "LARDER_CONFIG",
            "LARDER_READ_ONLY",
            "LARDER_STORE",
            "LARDER_UPSTREAM",
            "LARDER_UPSTREAM_TOKEN",
            "PATH",
            "XDG_RUNTIME_DIR",
        ]
    );
    let child = Machine { env, flags: Vec::new(), config_file: None, ..machine };
    let told = child.load();
    assert_eq!(told.store, config.store);
    assert_eq!(told.cache, config.cache);
    assert_eq!(told.frontend.socket, config.frontend.socket);
    assert_eq!(told.upstreams[0].credentials, config.upstreams[0].credentials);
    assert_eq!(told.upstreams[1].url, config.upstreams[1].url);
    assert_eq!(secret_names(), ["LARDER_UPSTREAM_TOKEN", "LARDER_TOKEN"]);
}

#[test]
fn what_counts_is_explained() {
    let config = Machine::new().env("LARDER_SCOPE", "s").flag("listen", "unix:/a,[::1]:1").load();
    let lines = config.explain();
    for line in [
        "scope = s   (from LARDER_SCOPE)",
        "listen = [\"unix:/a\",\"[::1]:1\"]   (from --listen)",
        "memory = a sixteenth of memory, within 64 MiB and 1 GiB   (default)",
    ] {
        assert!(lines.iter().any(|have| have == line), "{line} in {lines:#?}");
    }
    let explained = config.explain_json();
    assert_eq!(explained["version"], 1);
    assert_eq!(explained["settings"]["scope"], json!({ "value": "s", "from": "LARDER_SCOPE" }));
}
