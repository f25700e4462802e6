//! `larder env`: what a tool must find in its environment to use the cache; how it is quoted.

use std::ffi::OsStr;
use std::path::Path;

use clap::ArgMatches;
use serde_json::json;

use super::{FAILED, Failure, Outcome, USAGE, out};

/// Tools that an environment can turn to the cache.
const TOOLS: [&str; 1] = ["go"];

/// Prints exports for a shell, or an object.
pub(super) fn env(matches: &ArgMatches) -> Outcome {
    if let Some(tool) = matches.get_one::<String>("tool")
        && !TOOLS.contains(&tool.as_str())
    {
        let known = TOOLS.join(", ");
        return Err(Failure::new(USAGE, format!("no environment for `{tool}`; known: {known}")));
    }
    let command = gocacheprog().map_err(|problem| Failure::new(FAILED, problem))?;
    if matches.get_flag("json") {
        out::print_json(&json!({ "go": { "GOCACHEPROG": command } }));
    } else {
        out::print(&format!("export GOCACHEPROG={}", shell_word(&command)));
    }
    Ok(0)
}

/// What GOCACHEPROG must be for this very program.
pub(super) fn gocacheprog() -> Result<String, String> {
    let exe = std::env::current_exe()
        .map_err(|error| format!("cannot tell where this program is: {error}"))?;
    command_for_go(&exe).ok_or_else(|| {
        let shown = exe.display();
        format!("go cannot be given the path {shown}; install larder where the path has no quotes")
    })
}

/// `PATH go` as go splits it: a field with a space stands in quotes as a whole; there are no escapes.
fn command_for_go(exe: &Path) -> Option<String> {
    let path = exe.to_str()?;
    let is_plain = !path.contains([' ', '\t', '\n', '\r']) && !path.starts_with(['\'', '"']);
    let quoted = if is_plain {
        path.to_owned()
    } else {
        let quote = ['\'', '"'].into_iter().find(|quote| !path.contains(*quote))?;
        format!("{quote}{path}{quote}")
    };
    Some(format!("{quoted} go"))
}

/// Whether a value of GOCACHEPROG starts a larder.
pub(super) fn is_ours(value: &str) -> bool {
    let value = value.trim();
    let program = match value.chars().next() {
        Some(quote @ ('\'' | '"')) => value[1..].split(quote).next().unwrap_or_default(),
        _ => value.split_whitespace().next().unwrap_or_default(),
    };
    let name = Path::new(program).file_name().and_then(OsStr::to_str).unwrap_or_default();
    name.starts_with("larder")
}

/// A word that no shell changes.
pub(super) fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// go's `quoted.Split`, as its documentation has it.
    fn split(text: &str) -> Vec<String> {
        let mut fields = Vec::new();
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let end = if matches!(first, '\'' | '"') {
                rest = &rest[1..];
                rest.find(first).unwrap()
            } else {
                rest.find([' ', '\t', '\n', '\r']).unwrap_or(rest.len())
            };
            fields.push(rest[..end].to_owned());
            rest = rest.get(end + 1..).unwrap_or_default().trim_start();
        }
        fields
    }

    #[test]
    fn go_reads_the_path_that_was_meant() {
        let paths = [
            "/usr/bin/larder",
            "/opt/my tools/larder",
            "/opt/it's/larder",
            "/opt/it's mine/larder",
            "/opt/a \"b\"/larder",
            "/tab\there/larder",
        ];
        for path in paths {
            let command = command_for_go(Path::new(path)).unwrap();
            assert_eq!(split(&command), [path, "go"], "{command}");
            assert!(is_ours(&command), "{command}");
        }
        assert_eq!(command_for_go(Path::new("/a 'b' \"c\"/larder")), None);
    }

    #[test]
    fn other_programs_are_not_ours() {
        for value in ["", "gocachez", "/usr/bin/go-cacher --x larder", "'/opt/my larder/x' go"] {
            assert!(!is_ours(value), "{value}");
        }
    }

    #[test]
    fn shells_read_what_was_meant() {
        assert_eq!(shell_word("/opt/my tools/larder go"), "'/opt/my tools/larder go'");
        assert_eq!(shell_word("'/it' go"), r"''\''/it'\'' go'");
    }
}
