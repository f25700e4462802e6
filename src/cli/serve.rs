//! `larder daemon` and `larder check-config`.

use clap::ArgMatches;

use super::{Failure, Outcome, USAGE, out};
use crate::config::{Config, Sources, raw};
use crate::daemon::{self, Options};

/// Serves until a signal. 2: configuration, 5: the store cannot be used.
pub(super) fn daemon(matches: &ArgMatches) -> Outcome {
    let mut config = load(matches)?;
    let detached = matches.get_flag("detached");
    if detached {
        // Away from the terminal and the job of whoever started us. It fails only for one who leads
        // a session already.
        let _ = rustix::process::setsid();
        config.log.file = Some(config.client.daemon_log.clone());
    }
    match daemon::run(config, Options { detached }) {
        Ok(()) => Ok(0),
        Err(error) => Err(Failure::new(error.exit_code(), error)),
    }
}

/// Prints what counts and where it was written. 2: something is wrong.
pub(super) fn check_config(matches: &ArgMatches) -> Outcome {
    let config = load(matches)?;
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
