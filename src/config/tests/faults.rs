//! What faults say, where they point, and that none shows a secret.

use proptest::prelude::*;

use super::*;

/// Files, and the fault that each of them is.
const WRONG_FILES: &[(&str, &str)] = &[
    ("memmory = '1GiB'", "D/c.toml:1: unknown key `memmory`; did you mean `memory`?"),
    (
        "\n\ndisk-floor = '1GiB'",
        "D/c.toml:3: unknown key `disk-floor`; in a file keys are written with `_`: `disk_floor`",
    ),
    (
        "# c\nmemory = 'lots'",
        "D/c.toml:2: `lots` is not a size; write for example `memory = \"256MiB\"`",
    ),
    (
        "memory = true",
        "D/c.toml:1: `memory` cannot be true or false; write for example `memory = \"256MiB\"`",
    ),
    (
        "listen = '127.0.0.1:1'",
        "D/c.toml:1: `listen` cannot be a string; write for example `listen = \
             [\"127.0.0.1:7878\"]`",
    ),
    (
        "listen = [\n '127.0.0.1:1',\n 'here',\n]",
        "D/c.toml:3: `here` is not an IP address with a port; write for example `listen = \
             [\"127.0.0.1:7878\"]`",
    ),
    (
        "upstream = 'https://x'",
        "D/c.toml:1: `upstream` is written as a table of its own; write for example \
             `[[upstream]]` and below it `url = \"https://cache.example.com/prefix\"`",
    ),
    (
        "[[upstream]]\nname = 'a'",
        "D/c.toml:1: this upstream has no `url`; write for example `url = \
             \"https://cache.example.com/prefix\"`",
    ),
    (
        "[[upstream]]\nurl = 'ftp://x'",
        "D/c.toml:2: `ftp://x` is not a URL of http or https; write for example `url = \
             \"https://cache.example.com/prefix\"`",
    ),
    (
        "[[upstream]]\nurl = 'https://x'\nmemory = '1MiB'",
        "D/c.toml:3: unknown key `memory` in this table; it belongs above the first `[…]` of \
             the file",
    ),
    ("url = 'https://x'", "D/c.toml:1: unknown key `url` here; it belongs below an `[[upstream]]`"),
    (
        "[[upstream]]\nurl = 'https://x'\nclient_cert = 'x'",
        "D/c.toml:3: `client_cert` needs `client_key`; write for example `client_key = \
             \"/etc/larder/client.key\"`",
    ),
    (
        "[[upstream]]\nurl = 'http://x'\n[[upstream]]\nname = 'x'\nurl = 'http://y'",
        "D/c.toml:4: two upstreams are named `x`; write for example `name = \"central\"`",
    ),
    (
        "[[upstream]]\nurl = 'http://x'\n[frontend.gradle]\nupstream = 'y'",
        "D/c.toml:4: no upstream is named `y`; did you mean `x`?",
    ),
    ("[frontend.grdle]", "D/c.toml:1: unknown protocol `grdle`; did you mean `gradle`?"),
    ("[class.tests]", "D/c.toml:1: unknown class `tests`; did you mean `test`?"),
    (
        "[class.test]\nshare = 'no'",
        "D/c.toml:2: `no` is none of `upstream`, `local`, `off`; write for example `share = \
             \"local\"`",
    ),
    (
        "tls_cert = 'x'",
        "D/c.toml:1: `tls_cert` needs `tls_key`; write for example `tls_key = \
             \"/etc/larder/tls.key\"`",
    ),
    (
        "listen = ['0.0.0.0:7878']",
        "D/c.toml:1: `0.0.0.0:7878` lets other machines in, and nothing says which: name those \
             that may come in with `tokens = \"/etc/larder/tokens.toml\"`, or let everybody in \
             with `insecure = true`",
    ),
    ("tokens = 'none.toml'", "D/c.toml:1: cannot read D/none.toml: No such file"),
    ("memory = ", "D/c.toml:1: this is not TOML: "),
    ("a = 1\nb = 2\na = 3", "D/c.toml:3: this is not TOML: duplicate key"),
];

#[test]
fn every_fault_says_where_what_and_what_would_be_right() {
    for &(text, expected) in WRONG_FILES {
        let faults = Machine::new().config(text).faults();
        // Syntax is worded by the TOML library, files by the system.
        let is_open = ["not TOML", "No such file"].iter().any(|end| expected.contains(end));
        let is_right = faults.iter().any(|fault| match is_open {
            true => fault.starts_with(expected),
            false => fault == expected,
        });
        assert!(is_right, "{text}\nexpected {expected}\ngot {faults:#?}");
    }
    assert_eq!(Machine::new().config(b"a = 1\n\xff").faults(), ["D/c.toml:2: this is not UTF-8"]);
}

#[test]
fn flags_and_variables_are_named_as_they_were_written() {
    let cases = [
        (
            Machine::new().flag("disk", "x"),
            "--disk: `x` is not a size; write for example `--disk 50GiB`",
        ),
        (
            Machine::new().env("LARDER_DISK_FLOOR", "x"),
            "LARDER_DISK_FLOOR: `x` is not a size; write for example `LARDER_DISK_FLOOR=1GiB`",
        ),
        (
            Machine::new().env("LARDER_UPSTREAM", "x"),
            "LARDER_UPSTREAM: `x` is not a URL of http or https; write for example \
             `LARDER_UPSTREAM=https://cache.example.com/prefix`",
        ),
        (
            Machine::new().env("LARDER_DAEMON", "HTTPS://larder:7878"),
            "LARDER_DAEMON: a token would go to `HTTPS://larder:7878` in clear text: nothing \
             encrypts the connection to a daemon, which is for `http://` where the network is \
             trusted; write for example `LARDER_DAEMON=http://127.0.0.1:7878`",
        ),
        (
            Machine::new().flag("listen", "[::]:80"),
            "--listen: `[::]:80` lets other machines in, and nothing says which: name those that \
             may come in with `--tokens /etc/larder/tokens.toml`, or let everybody in with \
             `--insecure`",
        ),
        (
            Machine::new().env("LARDER_TLS_KEY", "/dev/null"),
            "LARDER_TLS_KEY: `LARDER_TLS_KEY` needs `LARDER_TLS_CERT`; write for example \
             `LARDER_TLS_CERT=/etc/larder/tls.crt`",
        ),
        (
            Machine::new().env("LARDER_MEMROY", "1GiB"),
            "LARDER_MEMROY: unknown variable; did you mean `LARDER_MEMORY`?",
        ),
        (
            Machine::new().flag("namespace", "a/../b"),
            "--namespace: `a/../b` has a segment `..`; write for example `--namespace team/project`",
        ),
    ];
    for (machine, expected) in cases {
        assert_eq!(machine.faults(), [expected]);
    }
    // What Kubernetes sets where a service is called larder.
    let env = ["LARDER_PORT", "LARDER_SERVICE_HOST", "LARDER_PORT_7878_TCP_ADDR"];
    let machine = env.into_iter().fold(Machine::new(), |machine, name| machine.env(name, "x"));
    machine.load();
    let mut missing = Machine::new();
    missing.config_file = Some(missing.path("none.toml"));
    assert!(missing.faults()[0].starts_with("--config: cannot read D/none.toml: "));
}

#[test]
fn all_faults_are_reported_together_and_in_order() {
    let text = "memmory = 1\nadmin = 'x'\n[[upstream]]\nurl = 'https://a'\nwrite = 'no'";
    let machine = Machine::new()
        .config(text)
        .env("LARDER_DISK", "x")
        .env("LARDER_TOKEN", "a b")
        .flag("log", "!");
    let places: Vec<String> =
        machine.faults().iter().map(|fault| fault.split(": ").next().unwrap().to_owned()).collect();
    assert_eq!(
        places,
        ["--log", "LARDER_DISK", "LARDER_TOKEN", "D/c.toml:1", "D/c.toml:2", "D/c.toml:5"]
    );
}

#[test]
fn tokens_come_from_a_file_that_only_its_owner_reads() {
    let text = format!(
        "[[token]]\nname = 'ci'\nsecret = '{CANARY}'\nnamespace = 'n'\naccess = 'write'\n\
         [[token]]\nname = 'dev'\nsecret = 'other'\ntrust = 'main'"
    );
    let machine = || {
        Machine::new()
            .config("tokens = 't.toml'\nlisten = ['0.0.0.0:1', 'unix:/l']")
            .file("t.toml", &text)
    };
    let tokens = machine().load().frontend.tokens;
    let seen: Vec<_> = tokens
        .iter()
        .map(|t| (t.name.as_str(), t.namespace.as_deref(), t.trust.as_deref(), t.write))
        .collect();
    assert_eq!(seen, [("ci", Some("n"), None, true), ("dev", None, Some("main"), false)]);

    let open = machine();
    let mode = fs::Permissions::from_mode(0o644);
    fs::set_permissions(open.path("t.toml"), mode).unwrap();
    let fault = "D/c.toml:1: D/t.toml has mode 0644, so that others can use it: run `chmod 600` \
                 on it";
    assert_eq!(open.faults(), [fault]);
    // A client does not look: it could not open what is the daemon's.
    assert!(open.load_with(Secrets::Leave).is_ok());

    let cases = [
        ("", "D/c.toml:1: D/t.toml has no `[[token]]`"),
        ("[[token]]\nname = 'a'", "D/t.toml:1: this token has no `secret`"),
        ("[[token]]\nsecret = 'a'", "D/t.toml:1: this token has no `name`"),
        ("[[tokens]]\nname = 'a'", "D/t.toml:1: unknown key `tokens`"),
        ("[[token]]\nname='a'\nsecret='x'\naccess='all'", "D/t.toml:4: `all` is neither"),
        (
            "[[token]]\nname='a'\nsecret='x'\n[[token]]\nname='b'\nsecret='x'",
            "D/t.toml:6: this is the secret of `a` as well",
        ),
        (
            "[[token]]\nname='a'\nsecret='x'\n[[token]]\nname='a'\nsecret='y'",
            "D/t.toml:5: two tokens are named `a`",
        ),
    ];
    for (text, expected) in cases {
        let faults = machine().file("t.toml", text).faults();
        assert!(faults.iter().any(|fault| fault.starts_with(expected)), "{text}: {faults:#?}");
    }
}

#[test]
fn secrets_are_never_printed() {
    let config = Machine::new()
        .file("t", CANARY)
        .file("tokens.toml", format!("[[token]]\nname='ci'\nsecret='{CANARY}'"))
        .config(
            "tokens = 'tokens.toml'\n[[upstream]]\nurl = 'http://a'\n[[upstream]]\n\
             url = 'http://b'\ntoken_file = 't'",
        )
        .env("LARDER_UPSTREAM_TOKEN", CANARY)
        .env("LARDER_TOKEN", CANARY)
        .load();
    let shown = format!("{config:?}\n{}\n{}", config.explain().join("\n"), config.explain_json());
    assert!(!shown.contains(CANARY), "{shown}");
    assert!(shown.contains("upstream.a.token = <secret>   (from LARDER_UPSTREAM_TOKEN)"));
    assert!(shown.contains("token.ci.secret = <secret>"));

    let url = format!("https://me:{CANARY}@x/y");
    let slash = format!("https://me:1/{CANARY}@x/y");
    let faulty = [
        Machine::new().flag("upstream", &url),
        Machine::new().flag("upstream", &slash),
        Machine::new().flag("upstream", &format!("https://x/y?sig={CANARY}")),
        Machine::new().env("LARDER_DAEMON", &url),
        Machine::new().env("LARDER_LISTEN", &url),
        Machine::new().env("LARDER_TOKEN", &format!("{CANARY} x")),
        Machine::new().env("LARDER_UPSTREAM_TOKEN", &format!("{CANARY}\nx")),
        Machine::new().config(format!("[[upstream]]\nurl = '{url}'")),
        Machine::new().config(format!("[[upstream]]\nurl = 'http://x'\ntoken = '{CANARY}'")),
        Machine::new().config(format!("[[upstream]]\nurl = 'http://x'\ntoken_file = {CANARY}")),
        Machine::new().config("tokens='t'").file("t", format!("[[token]]\nsecret = {CANARY}")),
        Machine::new().config("tokens='t'").file("t", format!("[[token]]\nsecret = '{CANARY}")),
        Machine::new().config("tokens='t'").file("t", format!("[[token]]\nsecret = ['{CANARY}']")),
        Machine::new().config("[[upstream]]\nurl = 'http://x'\nuser_file = 't'").file("t", CANARY),
        Machine::new().config(format!("[[upstream]]\nurl = 'http://x'\ntoken_file = '{CANARY}'")),
        Machine::new()
            .config("[[upstream]]\nurl = 'http://x'\ntoken_file = 't'")
            .file("t", format!("{CANARY} x")),
    ];
    for machine in faulty {
        let faults = machine.faults();
        assert!(!faults.join("\n").contains(CANARY), "{faults:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_as_a_file_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(Machine::new().config(bytes).load_with(Secrets::Read));
    }

    #[test]
    fn any_arrangement_of_our_words_is_read_or_refused(
        words in proptest::collection::vec(
            prop::sample::select(vec![
                "upstream", "frontend", "class", "test", "listen", "memory", "url", "name", "token",
                "tokens", "read_only", "[", "]", "[[", "]]", "=", " = ", "'", "\"", "\n", ".", ",",
                "{", "}", "1", "true", "'x'", "'http://a'", "[1, 'a']", "\n[[upstream]]\n", "é", "#",
            ]),
            0..40,
        )
    ) {
        let text = words.concat();
        let machine = Machine::new().config(&text).file("tokens.toml", &text);
        drop(machine.load_with(Secrets::Read));
        let tokens = machine.path("tokens.toml").display().to_string();
        let machine = Machine { config_file: None, ..machine }.flag("tokens", &tokens);
        drop(machine.load_with(Secrets::Read));
    }
}
