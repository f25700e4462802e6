//! TOML with places: reads a file into words, each with the line where it was written.
//!
//! Knows which keys there are (`table`) and what kind of value each takes, not what values mean.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use toml_edit::{Document, Item, TableLike, Value};

use super::faults::{Faults, Lines, Origin};
use super::table::{self, Kind, Setting, Unknown};

/// A piece of text and where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub text: String,
    pub origin: Origin,
}

/// What was written for one setting: one word, or those of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub words: Vec<Word>,
    pub origin: Origin,
}

/// One table such as `[[upstream]]` or `[class.test]`.
#[derive(Clone, Debug)]
pub(super) struct Section {
    /// `test` of `[class.test]`; empty for `[[upstream]]`.
    pub name: String,
    pub origin: Origin,
    pub keys: BTreeMap<&'static str, Written>,
}

impl Section {
    pub(super) fn get(&self, name: &str) -> Option<&Word> {
        self.keys.get(name)?.words.first()
    }
}

/// A configuration file as it was written.
#[derive(Clone, Debug, Default)]
pub(super) struct File {
    pub settings: BTreeMap<&'static str, Written>,
    pub upstreams: Vec<Section>,
    pub frontends: Vec<Section>,
    pub classes: Vec<Section>,
}

/// Largest file that is read. A thousand upstreams fit; `/dev/zero` does not.
const SIZE_MAX: u64 = 1 << 20;

/// The bytes of a small file, and to whom it belongs.
pub(super) fn bytes_of(path: &Path) -> io::Result<(Vec<u8>, fs::Metadata)> {
    let mut file = fs::File::open(path)?;
    // Of the open file, so that what is judged is what is read.
    let meta = file.metadata()?;
    let mut bytes = Vec::new();
    file.by_ref().take(SIZE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SIZE_MAX {
        return Err(io::Error::other("larger than 1 MiB"));
    }
    Ok((bytes, meta))
}

/// Reads a configuration file, already in memory.
pub(super) fn read(path: &Path, bytes: &[u8], faults: &mut Faults) -> File {
    let mut reader = Reader { lines: Lines::of(path, bytes), faults };
    let mut file = File::default();
    let Some(document) = reader.document(bytes) else { return file };
    for (key, item) in document.iter() {
        let origin = reader.place(document.as_table(), key, item);
        match key {
            "upstream" => file.upstreams = reader.array(&table::UPSTREAM, key, item, &origin),
            "frontend" => file.frontends = reader.named(&table::FRONTEND, key, item, &origin),
            "class" => file.classes = reader.named(&table::CLASS, key, item, &origin),
            _ => {
                if let Some((name, written)) = reader.entry(&table::SETTINGS, key, item, &origin) {
                    file.settings.insert(name, written);
                }
            }
        }
    }
    file
}

/// Reads a file of `[[token]]` tables.
pub(super) fn read_tokens(path: &Path, bytes: &[u8], faults: &mut Faults) -> Vec<Section> {
    let mut reader = Reader { lines: Lines::of(path, bytes), faults };
    let mut tokens = Vec::new();
    let Some(document) = reader.document(bytes) else { return tokens };
    for (key, item) in document.iter() {
        let origin = reader.place(document.as_table(), key, item);
        if key == "token" {
            tokens = reader.array(&table::TOKEN, key, item, &origin);
        } else {
            let problem = format!("unknown key {}", super::faults::quoted(key));
            reader.faults.add_with(&origin, problem, "[[token]] with `name` and `secret`".into());
        }
    }
    tokens
}

struct Reader<'a> {
    lines: Lines,
    faults: &'a mut Faults,
}

impl Reader<'_> {
    fn document<'t>(&mut self, bytes: &'t [u8]) -> Option<Document<&'t str>> {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                self.faults.add(&self.lines.at(error.valid_up_to()), "this is not UTF-8");
                return None;
            }
        };
        match Document::parse(text) {
            Ok(document) => Some(document),
            Err(error) => {
                let place = self.lines.at(error.span().map_or(0, |span| span.start));
                // The message alone: the error's own rendering repeats the line, secrets and all.
                let message = error.message().replace('\n', ", ");
                self.faults.add(&place, format!("this is not TOML: {message}"));
                None
            }
        }
    }

    fn place(&self, table: &dyn TableLike, key: &str, item: &Item) -> Origin {
        let span = table.key(key).and_then(toml_edit::Key::span).or_else(|| item.span());
        self.lines.at(span.map_or(0, |span| span.start))
    }

    /// One `key = value` of a table.
    fn entry(
        &mut self,
        rows: &'static [Setting],
        key: &str,
        item: &Item,
        origin: &Origin,
    ) -> Option<(&'static str, Written)> {
        let Some(row) = rows.iter().find(|row| row.key() == key) else {
            self.faults.add(origin, Unknown(key, rows));
            return None;
        };
        let words = item.as_value().and_then(|value| self.words(row.kind, value, origin));
        if words.is_none() {
            let problem = format!("`{key}` cannot be {}", a_type(item));
            self.faults.add_with(origin, problem, format!("`{}`", row.toml_example()));
        }
        Some((row.name, Written { words: words?, origin: origin.clone() }))
    }

    /// The text of a value, or None if it is of another type than its kind takes.
    fn words(&self, kind: Kind, value: &Value, origin: &Origin) -> Option<Vec<Word>> {
        let one = |text: String| Some(vec![Word { text, origin: origin.clone() }]);
        match (kind, value) {
            (Kind::One, Value::String(text)) => one(text.value().clone()),
            (Kind::One, Value::Integer(number)) => one(number.value().to_string()),
            (Kind::Path, Value::String(text)) => one(text.value().clone()),
            (Kind::Switch, Value::Boolean(on)) => one(on.value().to_string()),
            (Kind::List, Value::Array(items)) => items
                .iter()
                .map(|item| {
                    let place = item.span().map(|span| self.lines.at(span.start));
                    Some(Word {
                        text: match item {
                            Value::String(text) => text.value().clone(),
                            Value::Integer(number) => number.value().to_string(),
                            _ => return None,
                        },
                        origin: place.unwrap_or_else(|| origin.clone()),
                    })
                })
                .collect(),
            (Kind::One | Kind::Path | Kind::Switch | Kind::List | Kind::Tables, _) => None,
        }
    }

    fn section(
        &mut self,
        rows: &'static [Setting],
        name: &str,
        table: &dyn TableLike,
        origin: Origin,
    ) -> Section {
        let mut keys = BTreeMap::new();
        for (key, item) in table.iter() {
            let place = self.place(table, key, item);
            if let Some((name, written)) = self.entry(rows, key, item, &place) {
                keys.insert(name, written);
            }
        }
        Section { name: name.to_owned(), origin, keys }
    }

    /// `[[key]]`, or the same as an array of inline tables.
    fn array(
        &mut self,
        rows: &'static [Setting],
        key: &str,
        item: &Item,
        origin: &Origin,
    ) -> Vec<Section> {
        let mut tables: Vec<(Option<std::ops::Range<usize>>, &dyn TableLike)> = Vec::new();
        let mut is_right = true;
        match item {
            Item::ArrayOfTables(array) => {
                tables.extend(array.iter().map(|t| (t.span(), t as &dyn TableLike)));
            }
            Item::Value(Value::Array(array)) => {
                for value in array {
                    match value.as_inline_table() {
                        Some(table) => tables.push((table.span(), table)),
                        None => is_right = false,
                    }
                }
            }
            Item::None | Item::Value(_) | Item::Table(_) => is_right = false,
        }
        if !is_right {
            let problem = format!("`{key}` is written as a table of its own");
            let example = format!("`[[{key}]]` and below it `{}`", rows[1].toml_example());
            self.faults.add_with(origin, problem, example);
        }
        tables
            .into_iter()
            .map(|(span, table)| {
                let place = span.map_or_else(|| origin.clone(), |span| self.lines.at(span.start));
                self.section(rows, "", table, place)
            })
            .collect()
    }

    /// `[key.NAME]`.
    fn named(
        &mut self,
        rows: &'static [Setting],
        key: &str,
        item: &Item,
        origin: &Origin,
    ) -> Vec<Section> {
        let mut sections = Vec::new();
        let mut is_right = true;
        if let Some(outer) = item.as_table_like() {
            for (name, inner) in outer.iter() {
                let place = self.place(outer, name, inner);
                match inner.as_table_like() {
                    Some(table) => sections.push(self.section(rows, name, table, place)),
                    None => is_right = false,
                }
            }
        } else {
            is_right = false;
        }
        if !is_right {
            let problem = format!("`{key}` is written as tables, each with a name");
            let example = format!("`[{key}.NAME]` and below it `{}`", rows[0].toml_example());
            self.faults.add_with(origin, problem, example);
        }
        sections
    }
}

fn a_type(item: &Item) -> &'static str {
    match item {
        Item::None => "nothing",
        Item::Table(_) | Item::Value(Value::InlineTable(_)) => "a table",
        Item::ArrayOfTables(_) => "tables",
        Item::Value(value) => match value {
            Value::String(_) => "a string",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a fraction",
            Value::Boolean(_) => "true or false",
            Value::Datetime(_) => "a date",
            Value::Array(_) => "an array like this",
            Value::InlineTable(_) => "a table",
        },
    }
}
