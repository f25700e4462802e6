//! What go says to its cache, as it was recorded, and what it is answered by the real helper.
//!
//! A lookup that misses costs the time that the compiler took when it was recorded; outputs are made
//! up from their IDs, an eighth as long as recorded. Every file that is handed out is read and
//! compared.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::Broken;
use crate::entry::Digest;
use crate::tasks;
use crate::units::Random;

const RECORDED: &str = include_str!("conversation.txt");
/// Questions in flight: go has as many as the machine has cores.
const LANES: usize = 4;
/// Outputs are so much smaller than recorded ones, so that a small machine can tell the story.
const SMALLER: usize = 8;
/// Longer than the helper's own deadline.
const ANSWER_WITHIN: Duration = Duration::from_secs(40);

/// An output that go knows the action of.
#[derive(Clone, Debug)]
struct Output {
    action: Digest,
    size: usize,
}

/// A lookup and what hangs on it.
#[derive(Clone, Debug)]
struct Step {
    output: Output,
    cost: Duration,
    /// Looked up after a hit.
    asked: Vec<Output>,
    /// Put after a miss, besides those.
    put: Vec<Output>,
}

/// All that one build says.
#[derive(Clone, Debug)]
pub(super) struct Conversation(Vec<Step>);

impl Conversation {
    /// The recording. Another `code` is another program: nothing of it is known to anybody.
    pub(super) fn recorded(code: &str) -> Self {
        let mut steps: Vec<Step> = Vec::new();
        for line in RECORDED.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.split(' ');
            let mut word = || words.next().expect("the recording has every word");
            let (kind, id, size) = (word(), word(), word());
            let number = |word: &str| word.parse::<usize>().expect("the recording has numbers");
            let action = Digest::of(format!("{code}/{id}").as_bytes());
            let output = Output { action, size: number(size).div_ceil(SMALLER) };
            match (kind, steps.last_mut()) {
                ("ask", Some(step)) => step.asked.push(output),
                ("put", Some(step)) => step.put.push(output),
                _ => {
                    let ms = word().parse().expect("the recording has times");
                    let cost = Duration::from_millis(ms);
                    steps.push(Step { output, cost, asked: Vec::new(), put: Vec::new() });
                }
            }
        }
        Self(steps)
    }

    /// The first `n` lookups only.
    pub(super) fn first(mut self, n: usize) -> Self {
        self.0.truncate(n);
        self
    }

    /// The lookup whose output is the largest, alone and made in no time.
    pub(super) fn largest(mut self) -> Self {
        self.0.sort_by_key(|step| std::cmp::Reverse(step.output.size));
        self.0.iter_mut().for_each(|step| step.cost = Duration::ZERO);
        self.first(1)
    }

    /// Says it all to a helper as go does.
    pub(super) fn hold(&self, helper: Command, stop: &AtomicBool) -> Result<Heard, Broken> {
        let helper = Helper::start(helper)?;
        let next = AtomicUsize::new(0);
        let heard = Mutex::new(Heard::default());
        let lane = || -> Result<(), Broken> {
            while let Some(step) = self.0.get(next.fetch_add(1, Ordering::Relaxed)) {
                if stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                step.say(&helper, &heard)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(lane)).collect();
            let ended = lanes.into_iter().map(|lane| match lane.join() {
                Ok(result) => result,
                Err(_) => Err(Broken("a thread of the demo panicked".into())),
            });
            ended.collect::<Result<(), Broken>>()
        })?;
        helper.close()?;
        Ok(heard.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What came of a conversation.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) puts: u64,
    /// Files that were not what go had put.
    pub(super) lies: u64,
    /// Files that were handed out.
    pub(super) paths: Vec<PathBuf>,
}

impl Step {
    fn say(&self, helper: &Helper, heard: &Mutex<Heard>) -> Result<(), Broken> {
        if self.output.get(helper, heard)? {
            for output in &self.asked {
                if !output.get(helper, heard)? {
                    output.put(helper, heard)?;
                }
            }
            return Ok(());
        }
        // The compiler is at work.
        std::thread::sleep(self.cost);
        for output in self.put.iter().chain(&self.asked).chain([&self.output]) {
            output.put(helper, heard)?;
        }
        Ok(())
    }
}

impl Output {
    /// Words that repeat, so that they compress about as archives do.
    fn body(&self) -> Vec<u8> {
        let seed = self.action.0.first_chunk().map_or(1, |bytes| u64::from_le_bytes(*bytes));
        let mut random = Random::new(seed);
        let mut body = Vec::with_capacity(self.size + 32);
        while body.len() < self.size {
            let word = random.next_u64().to_le_bytes();
            (0..4).for_each(|_| body.extend_from_slice(&word));
        }
        body.truncate(self.size);
        body
    }

    /// Looks it up; whether it was there.
    fn get(&self, helper: &Helper, heard: &Mutex<Heard>) -> Result<bool, Broken> {
        let answer =
            helper.ask("get", &format!(r#","ActionID":"{}""#, base64(&self.action)), b"")?;
        if answer["Miss"] == true {
            locked(heard).misses += 1;
            return Ok(false);
        }
        let body = self.body();
        let path = answer["DiskPath"].as_str().unwrap_or_default();
        let is_true = answer["OutputID"] == base64(&Digest::of(&body)).as_str()
            && std::fs::read(path).is_ok_and(|found| found == body);
        let mut heard = locked(heard);
        heard.hits += 1;
        heard.lies += u64::from(!is_true);
        heard.paths.push(path.into());
        Ok(true)
    }

    fn put(&self, helper: &Helper, heard: &Mutex<Heard>) -> Result<(), Broken> {
        let body = self.body();
        let mut fields = format!(
            r#","ActionID":"{}","OutputID":"{}""#,
            base64(&self.action),
            base64(&Digest::of(&body))
        );
        if !body.is_empty() {
            // Writing into a string does not fail.
            let _ = write!(fields, r#","BodySize":{}"#, body.len());
        }
        let answer = helper.ask("put", &fields, &body)?;
        let path = answer["DiskPath"].as_str().unwrap_or_default();
        let size = std::fs::metadata(path).map_or(u64::MAX, |meta| meta.len());
        if size != body.len() as u64 {
            return Err(Broken(format!("a put was answered with {answer}")));
        }
        locked(heard).puts += 1;
        Ok(())
    }
}

/// Spoils a file as a bad disk would: one byte, at the same length.
pub(super) fn spoil(path: &Path) -> Result<(), Broken> {
    let mut bytes = std::fs::read(path)?;
    let middle = bytes.len() / 2;
    let byte = bytes.get_mut(middle).ok_or_else(|| Broken("an empty file".into()))?;
    *byte ^= 1;
    std::fs::remove_file(path)?;
    std::fs::write(path, bytes)?;
    Ok(())
}

/// Those who wait for an answer, by the question's number.
type Waiting = Arc<Mutex<HashMap<u64, SyncSender<Value>>>>;

/// The real helper, spoken to from several threads.
struct Helper {
    child: Mutex<Child>,
    stdin: Mutex<Option<ChildStdin>>,
    waiting: Waiting,
    last: AtomicU64,
}

impl Helper {
    fn start(mut command: Command) -> Result<Self, Broken> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let waiting = Waiting::default();
        let helper = Self {
            child: Mutex::new(child),
            stdin: Mutex::new(stdin),
            waiting: waiting.clone(),
            last: AtomicU64::new(0),
        };
        let stdout = stdout.ok_or_else(|| Broken("the helper has no output".into()))?;
        // Not joined: it ends with the helper's output, and the helper ends with its owner.
        tasks::thread("demo answers", move || pass_on(stdout, &waiting))?;
        Ok(helper)
    }

    fn ask(&self, command: &str, fields: &str, body: &[u8]) -> Result<Value, Broken> {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, answer) = sync_channel(1);
        locked(&self.waiting).insert(id, sender);
        let mut text = format!("{{\"ID\":{id},\"Command\":\"{command}\"{fields}}}\n\n");
        if !body.is_empty() {
            text.push('"');
            STANDARD.encode_string(body, &mut text);
            text.push_str("\"\n");
        }
        if let Some(stdin) = &mut *locked(&self.stdin) {
            stdin.write_all(text.as_bytes())?;
        }
        let answer = answer.recv_timeout(ANSWER_WITHIN);
        let answer = answer.map_err(|_| Broken("the helper did not answer in time".into()))?;
        match answer["Err"].as_str() {
            Some(error) => Err(Broken(format!("the helper answered a {command}: {error}"))),
            None => Ok(answer),
        }
    }

    /// As go ends: it says so, hears the answer, and waits for the helper's end.
    fn close(self) -> Result<(), Broken> {
        self.ask("close", "", b"")?;
        drop(locked(&self.stdin).take());
        let status = locked(&self.child).wait()?;
        match status.success() {
            true => Ok(()),
            false => Err(Broken(format!("the helper ended with {status}"))),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        // It has ended, unless something broke.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Gives each answer to whoever asked. At the end nobody waits any longer.
fn pass_on(stdout: ChildStdout, waiting: &Waiting) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        let Ok(answer) = serde_json::from_str::<Value>(&line) else { continue };
        let asker = answer["ID"].as_u64().and_then(|id| locked(waiting).remove(&id));
        if let Some(asker) = asker {
            // Whoever has given up does not listen.
            let _ = asker.send(answer);
        }
    }
    locked(waiting).clear();
}

fn base64(digest: &Digest) -> String {
    STANDARD.encode(digest.0)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
