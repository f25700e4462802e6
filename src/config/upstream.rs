//! Upstreams: addresses, credentials, and the rules that name them.
//!
//! A URL that might hold a secret is refused and never repeated, in faults or anywhere else.

use std::collections::BTreeMap;
use std::path::Path;

use super::Secrets;
use super::faults::{nearest, quoted};
use super::file::{self, Section, Word, Written};
use super::meaning::{Keys, Reading};
use super::table::{self, CLASS, FRONTEND, FRONTENDS, UPSTREAM, UPSTREAM_TOKEN};
use super::values::bearer;
use crate::backend::{self, Credentials, WriteMethod};
use crate::cache::{ClassRule, Share};
use crate::entry::Class;
use crate::units::Secret;

/// A URL below which larder asks: without credentials, query and trailing slash.
pub(super) fn url(text: &str) -> Result<String, String> {
    // Before anything that could repeat the text. An `@` anywhere, because a password may hold the
    // slash after which it would count as a path.
    if text.contains('@') {
        return Err("the URL, not repeated here, has an `@`: users and secrets belong in \
                    `token_file`, `user_file` or LARDER_UPSTREAM_TOKEN"
            .to_owned());
    }
    if text.contains(['?', '#']) {
        return Err("the URL has a query or a fragment, to which no path can be added".to_owned());
    }
    let bad = |why: &str| Err(format!("{} {why}", quoted(text)));
    let Ok(uri) = text.parse::<http::Uri>() else { return bad("is not a URL") };
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return bad("is not a URL of http or https");
    }
    match uri.authority() {
        Some(authority) if !authority.host().is_empty() => {
            let after_host = &authority.as_str()[authority.host().len()..];
            if !after_host.is_empty() && authority.port_u16().is_none() {
                return bad("has a port that does not exist");
            }
        }
        Some(_) | None => return bad("names no host"),
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// The host of a URL, which names an upstream that has no other name.
fn host_of(url: &str) -> Option<String> {
    let uri = url.parse::<http::Uri>().ok()?;
    Some(uri.host()?.trim_matches(['[', ']']).to_ascii_lowercase())
}

fn name(text: &str) -> Result<String, String> {
    let is_right = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.is_empty() || text.len() > 64 || !text.chars().all(is_right) {
        return Err(format!("{} is not a name of letters, digits, `.`, `_`, `-`", quoted(text)));
    }
    Ok(text.to_owned())
}

/// The upstreams that count: those of flags or environment replace those of the file.
pub(super) fn sections(reading: &Reading<'_>) -> Vec<Section> {
    let Some(written) = reading.raw.settings.get("upstream") else {
        return reading.raw.upstreams.clone();
    };
    let section = |word: &Word| Section {
        name: String::new(),
        origin: word.origin.clone(),
        keys: BTreeMap::from([(
            "url",
            Written { words: vec![word.clone()], origin: word.origin.clone() },
        )]),
    };
    written.words.iter().map(section).collect()
}

/// All upstreams, named. Those that are wrong are left out, but not their names.
pub(super) struct Upstreams {
    pub(super) configs: Vec<backend::Config>,
    /// None where the name itself is wrong.
    pub(super) names: Vec<Option<String>>,
    /// What the environment gives for the first one.
    pub(super) token: Option<Secret>,
}

pub(super) fn read(
    reading: &mut Reading<'_>,
    sections: &mut [Section],
    secrets: Secrets,
) -> Upstreams {
    let token = reading.secret_variable(UPSTREAM_TOKEN);
    let mut upstreams = Upstreams { configs: Vec::new(), names: Vec::new(), token };
    for section in sections {
        // To one host only: a token is never sent where its owner may not have meant it to go.
        let token = upstreams.token.clone().filter(|_| upstreams.names.is_empty());
        let name = name_of(reading, section, &upstreams.names);
        section.name = name.clone().unwrap_or_default();
        upstreams.names.push(name);
        upstreams.configs.extend(one(reading, section, token, secrets));
    }
    upstreams
}

fn name_of(
    reading: &mut Reading<'_>,
    section: &Section,
    taken: &[Option<String>],
) -> Option<String> {
    let keys = Keys { rows: &UPSTREAM, keys: &section.keys };
    let is_taken = |name: &String| taken.iter().flatten().any(|other| other == name);
    if let Some((row, word)) = keys.word("name") {
        let name = reading.value(keys, "name", name)?;
        if is_taken(&name) {
            reading.wrong(row, &word.origin, format!("two upstreams are named `{name}`"));
        }
        return Some(name);
    }
    let host = host_of(&section.get("url")?.text)?;
    let numbered = (2_u32..).map(|n| format!("{host}-{n}"));
    std::iter::once(host.clone()).chain(numbered).find(|name| !is_taken(name))
}

fn one(
    reading: &mut Reading<'_>,
    section: &Section,
    token: Option<Secret>,
    secrets: Secrets,
) -> Option<backend::Config> {
    let keys = Keys { rows: &UPSTREAM, keys: &section.keys };
    if keys.word("url").is_none() {
        let row = table::row_of(&UPSTREAM, "url");
        reading.wrong(row, &section.origin, "this upstream has no `url`");
    }
    let url = reading.value(keys, "url", url);
    let credentials = match token {
        Some(token) => Credentials::Bearer(token),
        None => credentials(reading, keys, secrets),
    };
    let ca_file = reading.path(keys, "ca-file");
    let client_cert = reading.pair(keys, "client-cert", "client-key");
    if secrets == Secrets::Read {
        reading.check_files(keys, &["ca-file", "client-cert", "client-key"]);
    }
    let write = reading.switch(keys, "write").unwrap_or(true);
    let write_method =
        reading.value(keys, "write-method", |text| match text.to_ascii_uppercase().as_str() {
            "PUT" => Ok(WriteMethod::Put),
            "POST" => Ok(WriteMethod::Post),
            _ => Err(format!("{} is neither `PUT` nor `POST`", quoted(text))),
        });
    Some(backend::Config {
        name: section.name.clone(),
        url: url?,
        credentials,
        ca_file,
        client_cert,
        write,
        write_method: write_method.unwrap_or(WriteMethod::Put),
        guard: Default::default(),
    })
}

fn credentials(reading: &mut Reading<'_>, keys: Keys<'_>, secrets: Secrets) -> Credentials {
    let token_file = reading.path(keys, "token-file");
    let user_file = reading.path(keys, "user-file");
    let (key, path) = match (token_file, user_file) {
        (None, None) => return Credentials::None,
        (Some(path), None) => ("token-file", path),
        (None, Some(path)) => ("user-file", path),
        (Some(_), Some(_)) => {
            if let Some((_, word)) = keys.word("user-file") {
                let problem = "`token_file` and `user_file` exclude each other: leave one out";
                reading.faults.add(&word.origin, problem);
            }
            return Credentials::None;
        }
    };
    if secrets == Secrets::Leave {
        return Credentials::None;
    }
    let read = secret_text(&path).and_then(|text| match key {
        "token-file" => bearer(&text)
            .map(Credentials::Bearer)
            .map_err(|problem| format!("is of no use: {problem}")),
        _ => basic(&text),
    });
    match (read, keys.word(key)) {
        (Ok(credentials), _) => credentials,
        (Err(problem), Some((_, word))) => {
            // Not the name of the file: a secret written where its file belongs is a common slip.
            reading.faults.add(&word.origin, format!("the file named here {problem}"));
            Credentials::None
        }
        (Err(_), None) => Credentials::None,
    }
}

fn secret_text(path: &Path) -> Result<String, String> {
    let (bytes, _) = file::bytes_of(path).map_err(|error| format!("cannot be read: {error}"))?;
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}

fn basic(text: &str) -> Result<Credentials, String> {
    let line = text.trim_end_matches(['\r', '\n']);
    match line.split_once(':') {
        Some((user, password)) if !user.is_empty() && !line.contains(char::is_control) => {
            Ok(Credentials::Basic {
                user: user.to_owned(),
                password: Secret::new(password.to_owned()),
            })
        }
        Some(_) | None => Err("is not one line of the form `user:password`".to_owned()),
    }
}

impl Upstreams {
    /// The upstream that a rule names.
    fn named(&self, reading: &mut Reading<'_>, keys: Keys<'_>) -> Option<String> {
        let (_, word) = keys.word("upstream")?;
        // Where a name could not be read its fault is enough.
        let known = self.names.iter().map(Option::as_deref).collect::<Option<Vec<_>>>()?;
        if known.contains(&word.text.as_str()) {
            return Some(word.text.clone());
        }
        let mut problem = format!("no upstream is named {}", quoted(&word.text));
        if let Some(near) = nearest(&word.text, known.iter().copied()) {
            problem.push_str(&format!("; did you mean `{near}`?"));
        } else if reading.raw.settings.contains_key("upstream") {
            let origin = reading.origin("upstream");
            problem.push_str(&format!(": {origin} replaces those of the file"));
        } else if known.is_empty() {
            problem.push_str(": there is no `[[upstream]]`");
        } else {
            problem.push_str(&format!("; known are {}", known.join(", ")));
        }
        reading.faults.add(&word.origin, problem);
        None
    }

    /// The upstream of a protocol: what its rule names, else the first.
    pub(super) fn of_frontend(
        &self,
        protocol: &str,
        rules: &[(String, String)],
    ) -> Option<&backend::Config> {
        let rule = rules.iter().find(|(name, _)| name == protocol);
        rule.and_then(|(_, upstream)| self.configs.iter().find(|config| config.name == *upstream))
            .or_else(|| self.configs.first())
    }

    /// `[frontend.NAME]`.
    pub(super) fn frontends(&self, reading: &mut Reading<'_>) -> Vec<(String, String)> {
        let mut rules = Vec::new();
        for section in &reading.raw.frontends {
            check_name(reading, section, "protocol", &FRONTENDS);
            let keys = Keys { rows: &FRONTEND, keys: &section.keys };
            if let Some(upstream) = self.named(reading, keys) {
                rules.push((section.name.clone(), upstream));
            }
        }
        rules
    }

    /// `[class.NAME]`. What a test reads belongs to what it prints, so `test` rules both, unless
    /// `test_log` has a rule of its own.
    pub(super) fn classes(&self, reading: &mut Reading<'_>) -> Vec<ClassRule> {
        let known = Class::ALL.map(Class::name);
        let mut rules = Vec::new();
        for section in &reading.raw.classes {
            check_name(reading, section, "class", &known);
            let keys = Keys { rows: &CLASS, keys: &section.keys };
            let share = reading.value(keys, "share", |text| match text {
                "upstream" => Ok(Share::Upstream),
                "local" => Ok(Share::Local),
                "off" => Ok(Share::Off),
                _ => Err(format!("{} is none of `upstream`, `local`, `off`", quoted(text))),
            });
            let rule = ClassRule {
                class: section.name.clone(),
                share: share.unwrap_or(Share::Upstream),
                upstream: self.named(reading, keys),
            };
            let log = Class::TestLog.name();
            let has_own = reading.raw.classes.iter().any(|section| section.name == log);
            if rule.class == Class::TestResult.name() && !has_own {
                rules.push(ClassRule { class: log.to_owned(), ..rule.clone() });
            }
            rules.push(rule);
        }
        rules
    }
}

fn check_name(reading: &mut Reading<'_>, section: &Section, what: &str, known: &[&str]) {
    if known.contains(&section.name.as_str()) {
        return;
    }
    let mut problem = format!("unknown {what} {}", quoted(&section.name));
    match nearest(&section.name, known.iter().copied()) {
        Some(near) => problem.push_str(&format!("; did you mean `{near}`?")),
        None => problem.push_str(&format!("; known are {}", known.join(", "))),
    }
    reading.faults.add(&section.origin, problem);
}
