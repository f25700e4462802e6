//! Secrets with a canary in them: where larder writes or prints anything, it does not sing.

use std::path::{Path, PathBuf};
use std::process::Output;

use base64::Engine;

use crate::harness::Home;
use crate::support::cache_server::{CacheServer, Fault};
use crate::support::http::send_with;
use crate::support::wait_for;

const CANARY: &str = "c4nary";

/// One secret for each way into larder.
const SERVED: &str = "c4nary-of-a-token-that-lets-clients-in";
const SHOWN: &str = "c4nary-of-a-token-that-a-client-shows";
const UPSTREAM: &str = "c4nary-of-the-upstream-in-the-environment";
const IN_FILE: &str = "c4nary-of-the-upstream-in-a-file";
const PASSWORD: &str = "user:c4nary-of-basic-authentication";

/// A configuration whose secrets are all in files, as they must be.
fn write_settings(home: &Home, url: &str, used: &str) -> PathBuf {
    let token = format!("[[token]]\nname = \"ci\"\nsecret = \"{SERVED}\"\naccess = \"write\"\n");
    let tokens = home.private("tokens.toml", &token);
    let token_file = home.private("upstream.token", IN_FILE);
    let user_file = home.private("upstream.user", PASSWORD);
    let text = format!(
        "tokens = {tokens:?}\nlog = \"trace\"\n[[upstream]]\nname = \"central\"\nurl = {url:?}\n"
    );
    let text = match used {
        "token_file" => format!("{text}token_file = {token_file:?}\n"),
        "user_file" => format!("{text}user_file = {user_file:?}\n"),
        _ => text,
    };
    let settings = home.path().join("larder.toml");
    std::fs::write(&settings, text).unwrap();
    settings
}

fn printed(output: &Output) -> String {
    let parts = [&output.stdout, &output.stderr];
    parts.map(|part| String::from_utf8_lossy(part).into_owned()).concat()
}

fn assert_silent(what: &str, text: &str) {
    let line = text.lines().find(|line| line.contains(CANARY));
    assert!(line.is_none(), "{what} sings: {}", line.unwrap_or_default());
}

/// All that lies under a directory, but for the files that secrets were put in.
fn assert_silent_files(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            assert_silent_files(&path);
        } else if path.is_file()
            && !["tokens.toml", "upstream.token", "upstream.user"].map(Into::into).contains(&name)
        {
            let text = std::fs::read(&path).unwrap();
            assert_silent(&path.display().to_string(), &String::from_utf8_lossy(&text));
        }
    }
}

#[test]
fn secrets_are_used_and_appear_nowhere() {
    let basic = base64::engine::general_purpose::STANDARD.encode(PASSWORD);
    let used = [
        ("environment", format!("Bearer {UPSTREAM}")),
        ("token_file", format!("Bearer {IN_FILE}")),
        ("user_file", format!("Basic {basic}")),
    ];
    for (way, shown) in used {
        let central = CacheServer::start();
        let home = Home::new();
        let config = write_settings(&home, &central.url(), way);
        let daemon = home.daemon_with(&["--config", config.to_str().unwrap()], |command| {
            if way == "environment" {
                command.env("LARDER_UPSTREAM_TOKEN", UPSTREAM);
            }
        });
        let bearer = format!("Bearer {SERVED}");
        let headers = [("authorization", &*bearer)];
        for path in ["/kv/a", "/kv/a", "/ac/bad", "/kv/missing", "/kv/.."] {
            send_with(daemon.addr(), "GET", path, &headers, b"").unwrap();
            send_with(daemon.addr(), "PUT", path, &headers, b"c").unwrap();
        }
        let wrong = [("authorization", "Bearer c4nary-that-is-wrong")];
        assert_eq!(send_with(daemon.addr(), "GET", "/kv/a", &wrong, b"").unwrap().status, 401);
        daemon.flush();
        let seen = central.authorizations();
        assert!(seen.iter().eq([&shown]), "{way}: {seen:?}");
        central.set_fault(Fault::Status(401));
        send_with(daemon.addr(), "GET", "/kv/other", &headers, b"").unwrap();
        assert_silent("stats", &daemon.stats().to_string());
        assert_commands_are_silent(&home, &config);
        assert!(home.log().contains("TRACE"), "not as talkative as can be: {}", home.log());
        assert_silent_files(home.path());
    }
}

fn assert_commands_are_silent(home: &Home, config: &Path) {
    for args in [
        &["check-config"][..],
        &["check-config", "--json"],
        &["env", "go"],
        &["env"],
        &["stats"],
        &["stats", "--json"],
        &["doctor"],
        &["doctor", "--json"],
        &["flush"],
        &["stop"],
    ] {
        let mut command = home.larder(args);
        command.env("LARDER_CONFIG", config).env("LARDER_TOKEN", SHOWN);
        let output = command.env("LARDER_UPSTREAM_TOKEN", UPSTREAM).output().unwrap();
        let text = printed(&output);
        assert_silent(&args.join(" "), &text);
        assert!(!text.contains("unexpected argument"), "{text}");
        assert!(text.contains("central") || args != ["check-config"], "{text}");
    }
}

#[test]
fn a_command_that_run_runs_inherits_no_secret() {
    let home = Home::new();
    let script = "echo $$ > pid; env > environment; while [ ! -e seen ]; do sleep 0.02; done";
    let mut child = home
        .larder(&["run", "--", "sh", "-c", script])
        .env("LARDER_TOKEN", SHOWN)
        .env("LARDER_UPSTREAM_TOKEN", UPSTREAM)
        .env("LARDER_UPSTREAM", "http://127.0.0.1:9")
        .env("LARDER_LISTEN", "127.0.0.1:0")
        .env("LARDER_ADMIN", "off")
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let at = |name: &str| home.path().join(name);
    wait_for("the command", || at("environment").exists().then_some(()));
    let pid = std::fs::read_to_string(at("pid")).unwrap();
    // Of a process, what it was started with: also what it would hide from its own children.
    let started = std::fs::read(format!("/proc/{}/environ", pid.trim())).unwrap();
    let started = String::from_utf8_lossy(&started).into_owned();
    std::fs::write(at("seen"), "").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(started.contains("GOCACHEPROG="), "{started}");
    assert_silent("the environment of the command", &started.replace('\0', "\n"));
    home.larder(&["stop"]).output().unwrap();
    assert_silent_files(home.path());
}
