//! A directory of outputs with an index that is read once, for programs that larder is compared
//! with.
//!
//! An output is the file named by its digest in hexadecimal. `index` holds a line for each action:
//! `ACTION OUTPUT SIZE TIME`, both identifiers in base64. Nothing is ever removed or checked: this is
//! the least that a helper can do.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::go_protocol::hex;

pub(crate) struct LocalDir {
    dir: PathBuf,
    /// The fields of the answer, ready to be written.
    answers: HashMap<String, String>,
    /// Lines for the index that are not in it yet.
    fresh: String,
    /// What was hit, in order of first use, if anybody wants to know.
    trace: Option<(PathBuf, String)>,
    /// Now, as Go writes times; one for all that this process puts.
    now: String,
}

impl LocalDir {
    pub(crate) fn open(dir: &Path, trace: Option<PathBuf>) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let index = match fs::read_to_string(dir.join("index")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        let mut local = Self {
            dir: dir.canonicalize()?,
            answers: HashMap::with_capacity(index.len() / 100),
            fresh: String::new(),
            trace: trace.map(|path| (path, String::new())),
            now: now(),
        };
        for line in index.lines() {
            local.learn(line);
        }
        Ok(local)
    }

    /// The fields of the answer to a get.
    pub(crate) fn get(&mut self, action: &str) -> Option<&str> {
        let fields = self.answers.get(action)?;
        if let Some((_, lines)) = &mut self.trace {
            *lines += action;
            *lines += fields;
            lines.push('\n');
        }
        Some(fields)
    }

    pub(crate) fn path(&self, output: &str) -> PathBuf {
        self.dir.join(hex(output))
    }

    pub(crate) fn now(&self) -> &str {
        &self.now
    }

    /// Remembers an output whose file is in place; returns the fields of the answer to a put.
    pub(crate) fn put(&mut self, action: &str, output: &str, size: u64, time: &str) -> String {
        let line = format!("{action} {output} {size} {time}");
        self.learn(&line);
        self.fresh += &line;
        self.fresh.push('\n');
        format!(",\"DiskPath\":\"{}\"}}", self.path(output).display())
    }

    /// Adds to the index what this process has learned. One write to a file opened for appending:
    /// several helpers may do so at once.
    pub(crate) fn save(&self) -> io::Result<()> {
        append(&self.dir.join("index"), &self.fresh)?;
        self.trace.as_ref().map_or(Ok(()), |(path, lines)| append(path, lines))
    }

    fn learn(&mut self, line: &str) {
        let mut words = line.split(' ');
        let (Some(action), Some(output), Some(size), Some(time)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return;
        };
        let path = self.path(output);
        let fields = format!(
            ",\"OutputID\":\"{output}\",\"Size\":{size},\"Time\":\"{time}\",\"DiskPath\":\"{}\"}}",
            path.display()
        );
        self.answers.insert(action.to_owned(), fields);
    }
}

/// Puts the bytes at `path`, unless they are there; nobody ever sees half of them. `unique` tells
/// writers of one process apart.
pub(crate) fn write_output(path: &Path, bytes: &[u8], unique: &str) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|there| there.len() == bytes.len() as u64) {
        return Ok(());
    }
    let staged = path.with_file_name(format!("staged-{}-{unique}", std::process::id()));
    File::create(&staged)?.write_all(bytes)?;
    fs::rename(&staged, path)
}

fn append(path: &Path, lines: &str) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    OpenOptions::new().create(true).append(true).open(path)?.write_all(lines.as_bytes())
}

/// The time, as RFC 3339 has it, in whole seconds.
#[expect(clippy::disallowed_methods, reason = "this program stands in for others than larder")]
fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 1 March of the year 0, so that the leap day comes last in its year and its 400 years.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + carry;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}
