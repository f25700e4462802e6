//! `larder daemon` and `larder check-config`.

use std::os::unix::process::CommandExt;
use std::process::Command;

use clap::ArgMatches;

use super::{FAILED, Failure, Outcome, USAGE, env, out};
use crate::config::{ClientConfig, Config, Sources, raw};
use crate::daemon::{self, Daemon, Options};
use crate::telemetry::log::{self, Format};

/// Serves until a signal. 2: configuration, 5: the store cannot be used.
pub(super) fn daemon(matches: &ArgMatches) -> Outcome {
    let detached = matches.get_flag("detached");
    // Away from the terminal and the job of whoever started us. It fails only for one who leads a session
    // already, as we do when we come back here.
    if detached && rustix::process::setsid().is_ok() {
        return begin_anew();
    }
    let mut config = load(matches)?;
    if detached {
        // Without a place for a log there is still a cache.
        let log = &config.client.daemon_log;
        config.log.file = log::can_write(log).then(|| log.clone());
    }
    let for_people = !detached && config.log.format == Format::Text;
    let has_tokens = !config.frontend.tokens.is_empty();
    let ready = |daemon: &Daemon| {
        if for_people {
            next_steps(daemon, has_tokens).iter().for_each(|line| out::hint(line));
        }
    };
    match daemon::run(config, Options { detached }, ready) {
        Ok(()) => Ok(0),
        Err(error) => Err(Failure::new(error.exit_code(), error)),
    }
}

/// The same process without what was open in whoever started it: go waits until its pipes are closed
/// everywhere, and a daemon that holds one would hang the build. The starter itself keeps it for its command.
fn begin_anew() -> Outcome {
    close_fds::set_fds_cloexec_threadsafe(3, &[]);
    let error = match std::env::current_exe() {
        Ok(program) => Command::new(program).args(std::env::args_os().skip(1)).exec(),
        Err(error) => error,
    };
    Err(Failure::new(FAILED, format!("cannot begin anew: {error}")))
}

/// What to paste into another terminal.
fn next_steps(daemon: &Daemon, has_tokens: bool) -> Vec<String> {
    // A path that go cannot be given is said by `larder env` and `doctor`.
    let Ok(helper) = env::gocacheprog() else { return Vec::new() };
    let program = helper.strip_suffix(" go").unwrap_or(&helper);
    let mut lines = vec!["next, in another terminal:".to_owned()];
    let found = ClientConfig::load(&Sources::from_process(Vec::new()));
    if found.is_ok_and(|client| client.socket != daemon.socket()) {
        let socket = daemon.socket().display().to_string();
        lines.push(format!("  export LARDER_SOCKET={}", env::shell_word(&socket)));
    }
    lines.push(format!("  {program} run -- go build ./..."));
    lines.push(format!("  export GOCACHEPROG={}; go build ./...", env::shell_word(&helper)));
    if let Some(url) = daemon.http().first() {
        let token = if has_tokens { "-H \"Authorization: Bearer $LARDER_TOKEN\" " } else { "" };
        lines.push(format!("  curl {token}-T FILE {url}/kv/NAME && curl {token}{url}/kv/NAME"));
    }
    lines
}

/// Prints what counts and where it was written. 2: something is wrong.
pub(super) fn check_config(matches: &ArgMatches) -> Outcome {
    let config = load(matches)?;
    let problems = daemon::check(&config);
    if !problems.is_empty() {
        return Err(Failure::new(USAGE, problems.join("\n")));
    }
    if matches.get_flag("json") {
        out::print_json(&config.explain_json());
    } else {
        config.explain().iter().for_each(|line| out::print(line));
    }
    Ok(0)
}

fn load(matches: &ArgMatches) -> Result<Config, Failure> {
    let sources = Sources::from_process(raw::flags_of(matches));
    Config::load(&sources).map_err(|faults| Failure::new(USAGE, faults))
}
