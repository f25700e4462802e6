//! Where things are by default: the XDG directories, and macOS' own customs.
//!
//! Says where, never creates or opens. What a setting names instead is decided in `meaning`.

use std::path::{Path, PathBuf};

use super::raw::Environment;

/// Whose customs count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum System {
    Xdg,
    #[cfg_attr(not(any(test, target_os = "macos")), expect(dead_code, reason = "made on macOS"))]
    MacOs,
}

impl System {
    #[cfg(target_os = "macos")]
    pub(super) const OURS: Self = Self::MacOs;
    #[cfg(not(target_os = "macos"))]
    pub(super) const OURS: Self = Self::Xdg;
}

/// The configuration file for everybody on the machine.
pub(super) const SYSTEM_CONFIG: &str = "/etc/larder/config.toml";

/// Longest path of a socket: `sun_path` less its end.
pub(super) const SOCKET_PATH_MAX: usize = if cfg!(target_os = "macos") { 103 } else { 107 };

/// The default places of one environment. None where nothing says where home is.
pub(super) struct Places<'a> {
    pub(super) env: &'a Environment,
    pub(super) system: System,
    pub(super) uid: u32,
}

impl Places<'_> {
    pub(super) fn store(&self) -> Option<PathBuf> {
        self.base("XDG_CACHE_HOME", ".cache", "Library/Caches").map(|base| base.join("larder"))
    }

    pub(super) fn user_config(&self) -> Option<PathBuf> {
        self.base("XDG_CONFIG_HOME", ".config", "Library/Application Support")
            .map(|base| base.join("larder/config.toml"))
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.runtime().join("larder.sock")
    }

    /// Falls back to the socket's directory, so that a service without a home has a log as well.
    pub(super) fn daemon_log(&self) -> PathBuf {
        self.base("XDG_STATE_HOME", ".local/state", "Library/Logs")
            .map_or_else(|| self.runtime(), |base| base.join("larder"))
            .join("daemon.log")
    }

    fn runtime(&self) -> PathBuf {
        match self.absolute("XDG_RUNTIME_DIR") {
            Some(base) => base.join("larder"),
            None => Path::new("/tmp").join(format!("larder-{}", self.uid)),
        }
    }

    /// A variable of XDG's counts on macOS too: who sets one there means it.
    fn base(&self, variable: &str, under_home: &str, under_home_macos: &str) -> Option<PathBuf> {
        self.absolute(variable).or_else(|| {
            let below = match self.system {
                System::Xdg => under_home,
                System::MacOs => under_home_macos,
            };
            Some(self.env.home()?.join(below))
        })
    }

    /// XDG has relative paths ignored.
    fn absolute(&self, variable: &str) -> Option<PathBuf> {
        self.env.get(variable).map(PathBuf::from).filter(|path| path.is_absolute())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(system: System, env: &[(&str, &str)]) -> [String; 4] {
        let env = Environment::of(env.iter().map(|(k, v)| ((*k).into(), (*v).into())));
        let places = Places { env: &env, system, uid: 7 };
        let show = |path: Option<PathBuf>| {
            path.map_or_else(|| "none".to_owned(), |path| path.display().to_string())
        };
        [
            show(places.store()),
            show(places.user_config()),
            show(Some(places.socket())),
            show(Some(places.daemon_log())),
        ]
    }

    #[test]
    fn places_follow_the_customs_of_the_system() {
        assert_eq!(
            places(System::Xdg, &[("HOME", "/h")]),
            [
                "/h/.cache/larder",
                "/h/.config/larder/config.toml",
                "/tmp/larder-7/larder.sock",
                "/h/.local/state/larder/daemon.log",
            ]
        );
        assert_eq!(
            places(System::MacOs, &[("HOME", "/h")]),
            [
                "/h/Library/Caches/larder",
                "/h/Library/Application Support/larder/config.toml",
                "/tmp/larder-7/larder.sock",
                "/h/Library/Logs/larder/daemon.log",
            ]
        );
        let xdg = [
            ("XDG_CACHE_HOME", "/c"),
            ("XDG_CONFIG_HOME", "/g"),
            ("XDG_RUNTIME_DIR", "/r"),
            ("XDG_STATE_HOME", "/s"),
        ];
        for system in [System::Xdg, System::MacOs] {
            assert_eq!(
                places(system, &xdg),
                [
                    "/c/larder",
                    "/g/larder/config.toml",
                    "/r/larder/larder.sock",
                    "/s/larder/daemon.log",
                ]
            );
        }
    }

    #[test]
    fn without_a_home_only_what_needs_none_has_a_place() {
        let none = ["none", "none", "/tmp/larder-7/larder.sock", "/tmp/larder-7/daemon.log"];
        assert_eq!(places(System::Xdg, &[]), none);
        assert_eq!(places(System::Xdg, &[("HOME", ""), ("XDG_CACHE_HOME", "relative")]), none);
    }
}
