//! The same with the real `go`, where there is one: one small module, built on two machines.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::machine::Machine;
use super::{Broken, Interrupted};
use crate::cli::env;

/// The oldest go that talks to a GOCACHEPROG.
const OLDEST: (u32, u32) = (1, 24);
const LOOK_EVERY: Duration = Duration::from_millis(10);

const PROGRAM: &str = r#"package main

import "fmt"

func main() { fmt.Println("built with larder") }
"#;
const MODULE: &str = "module example.com/demo\n\ngo 1.24\n";

/// A go that can be used.
pub(super) struct Go {
    program: PathBuf,
    path: std::ffi::OsString,
    pub(super) version: String,
}

impl Go {
    /// The first one on the path. The error says what to tell of it.
    pub(super) fn find(path: Option<&OsStr>) -> Result<Self, String> {
        let path = path.unwrap_or_default().to_owned();
        let mut places = std::env::split_paths(&path).map(|dir| dir.join("go"));
        let program =
            places.find(|program| program.is_file()).ok_or("there is no go on the PATH")?;
        let asked = Command::new(&program)
            .args(["env", "GOVERSION"])
            .env("GOTOOLCHAIN", "local")
            .current_dir("/")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        let version = asked.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        let version = version.map_err(|error| format!("{}: {error}", program.display()))?;
        match parse(&version) {
            Some(found) if found >= OLDEST => Ok(Self { program, path, version }),
            _ => {
                Err(format!("{version} is on the PATH, and 1.24 is the first that can ask larder"))
            }
        }
    }

    /// Builds the module as `session` on a machine; returns the program.
    pub(super) fn build(
        &self,
        machine: &Machine,
        session: &str,
        stop: &AtomicBool,
    ) -> Result<Vec<u8>, Broken> {
        let source = machine.home().join("src");
        std::fs::create_dir_all(&source)?;
        std::fs::write(source.join("go.mod"), MODULE)?;
        std::fs::write(source.join("main.go"), PROGRAM)?;
        let program = machine.home().join("program");
        let log = machine.home().join("go.log");
        let mut child = Command::new(&self.program)
            .args(["build", "-trimpath", "-buildvcs=false", "-o"])
            .arg(&program)
            .arg(".")
            .env_clear()
            .envs(machine.variables())
            .envs(go_variables(machine.home()))
            .env("PATH", &self.path)
            .env("GOCACHEPROG", env::gocacheprog().map_err(Broken)?)
            .env(crate::cli::go::SESSION, session)
            .current_dir(&source)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if stop.load(Ordering::Relaxed) {
                // Its helper ends with its input, its compilers with their work.
                let _ = child.kill();
                let _ = child.wait();
                return Err(Interrupted.into());
            }
            std::thread::sleep(LOOK_EVERY);
        };
        if !status.success() {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            let last = said.lines().last().unwrap_or("it said nothing").to_owned();
            return Err(Broken(format!("go build ended with {status}: {last}")));
        }
        Ok(std::fs::read(program)?)
    }
}

/// Nothing of the user's: no settings, no modules, no network.
fn go_variables(home: &Path) -> [(&'static str, std::ffi::OsString); 8] {
    [
        ("GOCACHE", home.join("go-cache").into()),
        ("GOPATH", home.join("go").into()),
        ("GOENV", "off".into()),
        ("GOFLAGS", "".into()),
        ("GOPROXY", "off".into()),
        ("GOTOOLCHAIN", "local".into()),
        ("GOTELEMETRY", "off".into()),
        ("CGO_ENABLED", "0".into()),
    ]
}

/// `go1.26.6`, `go1.25rc1`, `devel …`: the last is whatever its maker says, and is let in.
fn parse(version: &str) -> Option<(u32, u32)> {
    if version.starts_with("devel") {
        return Some((u32::MAX, 0));
    }
    let mut numbers = version.strip_prefix("go")?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        for version in ["go1.24", "go1.24.11", "go1.26.6", "go1.25rc1", "go2.0", "devel go1.28-x"] {
            assert!(parse(version).unwrap() >= OLDEST, "{version}");
        }
        for version in ["go1.23.12", "go1.9"] {
            assert!(parse(version).unwrap() < OLDEST, "{version}");
        }
        assert_eq!(parse(""), None);
    }
}
