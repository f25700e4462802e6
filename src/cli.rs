//! The command line: what there is, with examples, and which file does it. No logic beyond wiring.
//!
//! Each command is a file of its own in `cli/`. Exit codes are a contract: 0 is well, 2 a usage or
//! configuration error, and the others stand with their commands.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::{ClientConfig, Sources, raw};

// In reading order: serving, builds, questions, upkeep.
mod serve;

mod go;

mod run;

mod summary;

mod env;

mod ask;

mod stats;

mod prefetch;

mod doctor;

mod upkeep;

mod demo;

// What all of them use.
mod link;

mod out;

/// What a command came to: its exit code, or why it failed.
type Outcome = Result<u8, Failure>;

/// Why a command failed, as the user is told: one line a fault.
#[derive(Debug)]
struct Failure {
    code: u8,
    problem: String,
    /// Nobody is where a daemon was looked for, not even one that hangs.
    is_nobody: bool,
}

impl Failure {
    fn new(code: u8, problem: impl ToString) -> Self {
        Self { code, problem: problem.to_string(), is_nobody: false }
    }
}

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const LEFT: u8 = 3;
const NO_DAEMON: u8 = 4;
const STORE_IN_USE: u8 = 5;

/// Runs the command that `args` name, the program's name first.
pub fn run(args: Vec<OsString>) -> ExitCode {
    // go waits for a word of its helper before it does anything.
    if go::is_helper(&args) {
        return code(go::run(&args));
    }
    let matches = match tree().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => {
            out::printed(error.print());
            return if error.use_stderr() { ExitCode::from(USAGE) } else { code(Ok(0)) };
        }
    };
    code(dispatch(&matches))
}

fn code(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(0) if out::is_lost() => ExitCode::from(FAILED),
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            for line in failure.problem.lines() {
                out::say(line);
            }
            ExitCode::from(failure.code)
        }
    }
}

fn dispatch(matches: &ArgMatches) -> Outcome {
    match matches.subcommand() {
        None => serve::daemon(matches),
        Some(("daemon", matches)) => serve::daemon(matches),
        Some(("check-config", matches)) => serve::check_config(matches),
        Some(("run", matches)) => run::run(matches),
        Some(("env", matches)) => env::env(matches),
        Some(("stats", matches)) => ask::stats(matches),
        Some(("stop", matches)) => ask::stop(matches),
        Some(("flush", matches)) => ask::flush(matches),
        Some(("prefetch", matches)) => prefetch::prefetch(matches),
        Some(("demo", matches)) => demo::demo(matches),
        Some(("doctor", matches)) => doctor::doctor(matches),
        Some(("verify", matches)) => upkeep::verify(matches),
        Some(("purge", matches)) => upkeep::purge(matches),
        // `larder go --help`, which is no helper's call, ends within clap.
        Some((name, _)) => Err(Failure::new(USAGE, format!("unknown command `{name}`"))),
    }
}

/// Settings of a daemon: all but those of clients, `daemon` and `commit`.
const DAEMON: &[&str] = &[
    "listen",
    "admin",
    "socket",
    "store",
    "disk",
    "disk-floor",
    "memory",
    "upstream",
    "namespace",
    "trust",
    "read-only",
    "scope",
    "tokens",
    "insecure",
    "tls-cert",
    "tls-key",
    "allow-host",
    "allow-uid",
    "idle-exit",
    "log",
    "log-format",
];
/// Settings of clients that may start a daemon and say what they want of it.
const BUILD: &[&str] = &[
    "socket",
    "daemon",
    "store",
    "upstream",
    "namespace",
    "trust",
    "read-only",
    "scope",
    "commit",
    "disk",
    "memory",
    "idle-exit",
    "log",
];
/// Settings of clients that only ask.
const ASK: &[&str] = &["socket", "daemon", "store"];

fn tree() -> Command {
    Command::new("larder")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A per-machine caching proxy daemon for build caches; without a command, the daemon")
        .before_help(
            "Examples:\n  \
             larder run -- go build ./...                    build with the cache, daemon and all\n  \
             larder --upstream https://cache.example.com     serve this machine\n  \
             larder stats                                    what it has done so far\n  \
             larder doctor go                                why it does not help",
        )
        .args_conflicts_with_subcommands(true)
        .args(raw::args(DAEMON))
        .arg(detached())
        .subcommands([daemon(), check_config(), go(), run_command(), env(), stats(), stop()])
        .subcommands([flush(), prefetch(), doctor(), verify(), purge(), demo()])
}

fn command(name: &'static str, about: &'static str, examples: &'static str) -> Command {
    Command::new(name).about(about).before_help(examples)
}

fn detached() -> Arg {
    Arg::new("detached").long("detached").hide(true).action(ArgAction::SetTrue)
}

fn json() -> Arg {
    Arg::new("json").long("json").help("Print JSON").action(ArgAction::SetTrue)
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
}

fn value(name: &'static str, shown: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(shown).help(help)
}

fn daemon() -> Command {
    let examples = "Examples:\n  larder daemon --upstream https://cache.example.com\n  \
                    larder daemon --listen 0.0.0.0:7878 --tokens /etc/larder/tokens.toml";
    command("daemon", "Serve in the foreground until a signal", examples)
        .args(raw::args(DAEMON))
        .arg(detached())
}

fn check_config() -> Command {
    let examples = "Examples:\n  larder check-config\n  larder check-config --config ./larder.toml";
    command("check-config", "Print every setting and where it comes from", examples)
        .args(raw::args(DAEMON))
        .arg(json())
}

fn go() -> Command {
    let examples = "Examples:\n  export GOCACHEPROG=\"larder go\"; go build ./...\n  \
                    larder run -- go build ./...        sets it by itself";
    command("go", "The program that go talks to (GOCACHEPROG)", examples).args(raw::args(BUILD))
}

fn run_command() -> Command {
    let examples = "Examples:\n  larder run -- go test ./...\n  \
                    larder run --flush -- make          waits up to 30 s for uploads\n  \
                    larder run --summary larder.json -- go build ./...";
    let flush = value("flush", "DURATION", "Wait for uploads at the end [default: 30s]")
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("30s");
    let command_line = Arg::new("command")
        .value_name("CMD")
        .help("The command and its arguments")
        .required(true)
        .num_args(1..)
        .trailing_var_arg(true)
        .allow_hyphen_values(true)
        .value_parser(clap::value_parser!(OsString));
    command("run", "Run a command with the cache", examples)
        .arg(flush)
        .arg(value("summary", "FILE", "Write the summary as JSON as well"))
        .args(raw::args(BUILD))
        .arg(command_line)
}

fn env() -> Command {
    let examples = "Examples:\n  eval \"$(larder env go)\"\n  larder env --json";
    command("env", "Print the environment that makes a tool use the cache", examples)
        .arg(Arg::new("tool").value_name("TOOL").help("The tool [default: all that are known]"))
        .arg(json())
}

fn stats() -> Command {
    let examples = "Examples:\n  larder stats\n  larder stats --json | jq .journal.owed_entries";
    command("stats", "What the daemon has done", examples).args(raw::args(ASK)).arg(json())
}

fn stop() -> Command {
    command("stop", "End the daemon", "Examples:\n  larder stop").args(raw::args(ASK)).arg(json())
}

fn flush() -> Command {
    let examples = "Examples:\n  larder flush\n  larder flush --timeout 2m";
    command("flush", "Wait until no upload is owed", examples)
        .arg(value("timeout", "DURATION", "Wait no longer than this [default: 10m]"))
        .args(raw::args(BUILD))
        .arg(json())
}

fn prefetch() -> Command {
    let examples = "Examples:\n  larder prefetch --commit \"$GITHUB_SHA\"      before the checkout\n  \
                    larder prefetch --wait                      in a checkout, until all is here";
    command("prefetch", "Fetch what a commit's build will need", examples)
        .arg(switch("wait", "Wait until everything is here"))
        .arg(
            value("timeout", "DURATION", "Wait no longer than this [default: 10m]")
                .requires("wait"),
        )
        .args(raw::args(BUILD))
        .arg(json())
}

fn demo() -> Command {
    let about = "The whole story in a minute: a central cache, a slow link, two machines";
    command("demo", about, "Examples:\n  larder demo        in a temporary directory, no go needed")
}

fn doctor() -> Command {
    let examples = "Examples:\n  larder doctor\n  larder doctor go";
    command("doctor", "Look for what keeps the cache from helping", examples)
        .arg(Arg::new("tool").value_name("TOOL").help("The tool to look at as well: go"))
        .args(raw::args(ASK))
        .arg(json())
}

fn verify() -> Command {
    let examples = "Examples:\n  larder verify\n  larder verify --repair";
    command("verify", "Read and check every entry of the local store", examples)
        .arg(switch("repair", "Remove bad entries; they are misses afterwards"))
        .args(raw::args(ASK))
        .arg(json())
}

fn purge() -> Command {
    let examples = "Examples:\n  larder purge --older-than 30d\n  larder purge --realm pr/17\n  \
                    larder purge --all";
    command("purge", "Remove entries from the local store; upstream keeps its own", examples)
        .arg(switch("all", "Everything").conflicts_with_all(["older-than", "realm", "writer"]))
        .arg(value("older-than", "DURATION", "What was stored longer ago than this"))
        .arg(value("realm", "NAMESPACE", "What belongs to this namespace"))
        .arg(value("writer", "NAME", "What this writer has stored"))
        .group(
            clap::ArgGroup::new("what")
                .args(["all", "older-than", "realm", "writer"])
                .multiple(true)
                .required(true),
        )
        .args(raw::args(ASK))
        .arg(json())
}

/// The settings of a client.
fn client_of(matches: &ArgMatches) -> Result<(Sources, ClientConfig), Failure> {
    let sources = Sources::from_process(raw::flags_of(matches));
    let config = ClientConfig::load(&sources).map_err(|faults| Failure::new(USAGE, faults))?;
    Ok((sources, config))
}

/// A duration among a command's own flags.
fn duration_of(matches: &ArgMatches, name: &str) -> Result<Option<std::time::Duration>, Failure> {
    let Some(text) = matches.get_one::<String>(name) else { return Ok(None) };
    let parsed = crate::units::parse_duration(text);
    parsed.map(Some).map_err(|error| Failure::new(USAGE, format!("--{name}: {error}")))
}

#[cfg(test)]
mod tests;
