//! Requests as go writes them, as others might, and broken; always the same whatever the reads.

use super::*;
use proptest::prelude::*;

const ACTION: [u8; 32] = [1; 32];
const OUTPUT: [u8; 32] = [0xfb; 32];

/// A reader that gives no more at once than its script says.
struct Chunked<'a> {
    bytes: &'a [u8],
    sizes: Vec<usize>,
    turn: usize,
}

impl Read for Chunked<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = self.sizes.get(self.turn % self.sizes.len().max(1)).copied().unwrap_or(4096);
        self.turn += 1;
        let len = most.max(1).min(self.bytes.len()).min(buf.len());
        buf[..len].copy_from_slice(&self.bytes[..len]);
        self.bytes = &self.bytes[len..];
        Ok(len)
    }
}

/// Everything that was read: requests with their bodies, and how it ended.
fn read_all(bytes: &[u8], sizes: &[usize]) -> (Vec<String>, String) {
    let mut requests = Requests::new(Chunked { bytes, sizes: sizes.to_vec(), turn: 0 });
    let mut out = Vec::new();
    loop {
        let request = match requests.next() {
            Ok(Some(request)) => request,
            Ok(None) => return (out, "end".into()),
            Err(error) => return (out, kind(&error)),
        };
        out.push(format!("{request:?}"));
        let (Command::Put { size, .. } | Command::Unknown { size, .. }) = request.command else {
            continue;
        };
        if size == 0 {
            continue;
        }
        let mut body = Vec::new();
        match requests.body(size, &mut |piece| body.extend_from_slice(piece)) {
            Ok(Ok(())) => out.push(format!("body {}", crate::entry::Digest::of(&body))),
            Ok(Err(fault)) => out.push(format!("{fault:?}")),
            Err(error) => return (out, kind(&error)),
        }
    }
}

fn kind(error: &ProtocolError) -> String {
    match error {
        ProtocolError::Io(error) => format!("{:?}", error.kind()),
        ProtocolError::Malformed(_) => "malformed".into(),
    }
}

fn put(id: i64, body: &[u8], size: usize) -> String {
    let (action, output) = (STANDARD.encode(ACTION), STANDARD.encode(OUTPUT));
    let head =
        format!(r#"{{"ID":{id},"Command":"put","ActionID":"{action}","OutputID":"{output}""#);
    match size {
        0 => format!("{head}}}\n\n"),
        _ => format!("{head},\"BodySize\":{size}}}\n\n\"{}\"\n", STANDARD.encode(body)),
    }
}

#[test]
fn requests_are_read_as_go_and_others_write_them() {
    let (a, o) = (STANDARD.encode(ACTION), STANDARD.encode(OUTPUT));
    let get = Request { id: 7, command: Command::Get { action: ACTION } };
    let put =
        |size| Request { id: 7, command: Command::Put { action: ACTION, output: OUTPUT, size } };
    let cases = [
        (format!(r#"{{"ID":7,"Command":"get","ActionID":"{a}"}}"#), Some(get.clone())),
        (
            format!(" {{\n\t\"id\" : 7 , \"COMMAND\":\"get\",\"actionid\":\"{a}\" }}"),
            Some(get.clone()),
        ),
        (
            format!(r#"{{"X":{{"a":["}}",1]}},"ID":7,"Command":"get","ActionID":"{a}","Y":null}}"#),
            Some(get.clone()),
        ),
        (format!(r#"{{"ID":7,"Command":"g\u0065t","ActionID":"{a}"}}"#), Some(get)),
        (format!(r#"{{"ID":7,"Command":"put","ActionID":"{a}","OutputID":"{o}"}}"#), Some(put(0))),
        (
            format!(r#"{{"ID":7,"Command":"put","ActionID":"{a}","ObjectID":"{o}","BodySize":5}}"#),
            Some(put(5)),
        ),
        (
            format!(
                r#"{{"ID":7,"Command":"put","ActionID":"{a}","OutputID":"{o}","ObjectID":""}}"#
            ),
            Some(put(0)),
        ),
        (r#"{"ID":7,"Command":"close"}"#.into(), Some(Request { id: 7, command: Command::Close })),
        (r#"{"ID":7.5,"Command":"close"}"#.into(), None),
        (r#"{"ID":7,"Command":"close",}"#.into(), None),
        (r#"{"ID":7 "Command":"close"}"#.into(), None),
        (r#"{"ID":7,"Command":close}"#.into(), None),
        (r#"{"ID":7,"Command":"put","BodySize":-1}"#.into(), None),
        ("[1]".into(), None),
        ("hello".into(), None),
    ];
    for (text, expected) in cases {
        let read = Requests::new(text.as_bytes()).next();
        assert_eq!(read.ok().flatten(), expected, "{text}");
    }
    let short = r#"{"ID":7,"Command":"get","ActionID":"AAAA"}"#;
    let read = Requests::new(short.as_bytes()).next().unwrap().unwrap();
    assert!(matches!(read.command, Command::Unknown { size: 0, .. }), "{read:?}");
}

#[test]
fn a_wrong_body_is_read_to_its_end() {
    let good = put(1, b"hello", 5);
    let next = r#"{"ID":2,"Command":"close"}"#;
    let quoted = |text: &str| good.replace(&STANDARD.encode(b"hello"), text);
    let cases = [
        (good.clone(), format!("body {}", crate::entry::Digest::of(b"hello"))),
        (quoted("aGVsbG8"), "Length".into()),
        (quoted(""), "Length".into()),
        (quoted("aGVsbG8hISEh"), "Length".into()),
        (quoted("aGVsbA=="), "Length".into()),
        (quoted("aG*sbG8="), "Base64".into()),
        (quoted(r#"aG\"sbG8\\="#), "Base64".into()),
    ];
    for (text, expected) in cases {
        for sizes in [&[1_usize][..], &[3], &[100_000]] {
            let (out, end) = read_all(format!("{text}{next}").as_bytes(), sizes);
            assert_eq!((out.len(), end.as_str()), (3, "end"), "{text} {out:?}");
            assert_eq!(out[1], expected, "{text}");
        }
    }
}

#[test]
fn a_body_cut_short_is_the_end() {
    let text = put(1, b"hello", 5);
    let (out, end) = read_all(&text.as_bytes()[..text.len() - 4], &[64]);
    assert_eq!((out.len(), end.as_str()), (1, "UnexpectedEof"));
    assert_eq!(read_all(b"{\"ID\":1,", &[64]).1, "end");
}

#[test]
fn an_object_without_an_end_is_refused_before_it_fills_the_memory() {
    let text = format!("{{\"X\":\"{}", "x".repeat(1 << 20));
    assert_eq!(read_all(text.as_bytes(), &[5000]).1, "malformed");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_same_is_read_whatever_the_reads(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..6),
        big in 0_usize..400_000,
        sizes in prop::collection::vec(1_usize..5000, 1..8),
    ) {
        let mut text = String::new();
        for (id, body) in (1..).zip(&bodies) {
            text.push_str(&put(id, body, body.len()));
        }
        let body: Vec<u8> = (0..big).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect();
        text.push_str(&put(99, &body, big));
        let whole = read_all(text.as_bytes(), &[1 << 20]);
        prop_assert_eq!(&whole.1, "end");
        prop_assert_eq!(read_all(text.as_bytes(), &sizes), whole);
    }

    #[test]
    fn anything_is_read_to_an_end(
        bytes in prop_oneof![
            any::<Vec<u8>>(),
            "[{}\"\\\\:,a-zA-Z0-9+/= \\[\\]\n]{0,200}".prop_map(String::into_bytes),
            "\\{\"ID\":[0-9a\\-.]{1,3},\"Command\":\"(get|put|close)\",\"BodySize\":[0-9]{1,3}\\}\n\"?[a-zA-Z=\"]{0,9}"
                .prop_map(String::into_bytes),
        ],
        sizes in prop::collection::vec(1_usize..50, 1..4),
    ) {
        let _ = read_all(&bytes, &sizes);
    }
}
