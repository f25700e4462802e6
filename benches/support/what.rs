//! What cold machines build: the module, the standard library, go itself, or tests.

use std::process::Command;

use super::measure::Scale;
use super::module::Module;

/// Packages whose tests are quick, ask nothing of the machine, and pass under the language version of the
/// module's go.mod (those of `net/url` hold only with the settings of the newest).
const TESTED: [&str; 40] = [
    "bufio",
    "bytes",
    "cmp",
    "container/heap",
    "container/list",
    "container/ring",
    "encoding/ascii85",
    "encoding/base32",
    "encoding/base64",
    "encoding/binary",
    "encoding/csv",
    "encoding/hex",
    "encoding/json",
    "encoding/pem",
    "encoding/xml",
    "errors",
    "expvar",
    "fmt",
    "go/ast",
    "go/scanner",
    "go/token",
    "hash/adler32",
    "hash/crc32",
    "hash/fnv",
    "html",
    "io",
    "maps",
    "math/bits",
    "math/cmplx",
    "mime",
    "path",
    "slices",
    "sort",
    "strconv",
    "strings",
    "text/scanner",
    "text/tabwriter",
    "text/template/parse",
    "unicode",
    "unicode/utf8",
];
/// How many of them are enough to see that it still runs.
const TESTED_SHORT: usize = 4;

/// One kind of build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Module,
    Std,
    StdCmd,
    Test,
}

impl What {
    pub(crate) const ALL: [(&'static str, Self); 4] = [
        ("module", Self::Module),
        ("std", Self::Std),
        ("stdcmd", Self::StdCmd),
        ("test", Self::Test),
    ];

    /// What go is told.
    pub(crate) fn args(self, scale: Scale) -> Vec<&'static str> {
        match (self, scale) {
            (Self::Module, _) => vec!["build", "./..."],
            (Self::Std, Scale::Full) => vec!["build", "std"],
            (Self::StdCmd, Scale::Full) => vec!["build", "std", "cmd"],
            (Self::Std, Scale::Short) => vec!["build", "go/format", "encoding/json"],
            (Self::StdCmd, Scale::Short) => vec!["build", "go/format", "cmd/gofmt"],
            (Self::Test, _) => {
                let count = if scale == Scale::Short { TESTED_SHORT } else { TESTED.len() };
                ["test", "-short"].into_iter().chain(TESTED.into_iter().take(count)).collect()
            }
        }
    }

    /// In words, for a title.
    pub(crate) fn title(self, module: &Module, scale: Scale) -> String {
        match self {
            Self::Module => format!(
                "`go build ./...` of {} packages and the standard library they need",
                module.packages
            ),
            Self::Test if scale == Scale::Full => {
                format!("`go test -short` of {} packages", TESTED.len())
            }
            Self::Std | Self::StdCmd | Self::Test => format!("`go {}`", self.args(scale).join(" ")),
        }
    }

    /// Adds to `go` the words that make one file of the build, to be compared.
    pub(crate) fn make_one<'a>(self, go: &'a mut Command, to: &std::path::Path) -> &'a mut Command {
        let (words, package): (&[&str], &str) = match self {
            Self::Module => (&["build"], "./cmd/app"),
            Self::Std => (&["build"], "go/format"),
            Self::StdCmd => (&["build"], "cmd/gofmt"),
            Self::Test => (&["test", "-c"], "bytes"),
        };
        go.args(words).arg("-o").arg(to).arg(package)
    }
}
