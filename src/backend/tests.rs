//! What can and cannot be built, and what is said about it.

use std::path::{Path, PathBuf};

use super::*;

fn config(url: &str) -> Config {
    Config {
        name: "central".into(),
        url: url.into(),
        credentials: Credentials::None,
        ca_file: None,
        client_cert: None,
        write: true,
        write_method: WriteMethod::Put,
        guard: guard::Config::default(),
    }
}

fn problem(config: &Config) -> String {
    match build(config, &Metrics::default(), 1) {
        Ok(_) => "built".into(),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_url_that_cannot_be_used_is_explained_without_its_secrets() {
    let cases = [
        ("http://cache.example.com", "built"),
        (" HTTP://cache.example.com/prefix/ ", "built"),
        ("http://[::1]:7878/a/b", "built"),
        ("redis://:hunter2@host", "`redis://` is not supported; larder speaks `http://`"),
        ("s3://bucket", "`s3://` is not supported"),
        ("cache.example.com/hunter2", "its url names no scheme"),
        ("http://me:hunter2@host/", "user_file (basic) or token_file (bearer)"),
        ("http://hunter2@host/", "user_file (basic) or token_file (bearer)"),
        ("http://host/?token=hunter2", "has a `?` or `#`"),
        ("http://host/#hunter2", "has a `?` or `#`"),
        ("http://", "empty host"),
        ("http://host:hunter2/", "invalid port"),
    ];
    for (url, expected) in cases {
        let said = problem(&config(url));
        assert!(said.contains(expected), "{url}: {said}");
        assert!(!said.contains("hunter2"), "{url}: {said}");
        assert!(expected == "built" || said.starts_with("upstream `central`: "), "{said}");
    }
}

#[tokio::test]
async fn a_token_that_no_header_can_carry_is_refused_and_not_shown() {
    let secret = || Secret::new("hunter2\nX-Evil: 1".into());
    let mut config = config("http://host");
    config.credentials = Credentials::Bearer(secret());
    let said = problem(&config);
    assert!(said.contains("no HTTP header can carry") && !said.contains("hunter2"), "{said}");
    config.credentials = Credentials::Basic { user: "me".into(), password: secret() };
    assert_eq!(problem(&config), "built", "base64 carries anything");
}

#[tokio::test]
async fn files_that_are_missing_or_wrong_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let pair = |names: &[&str]| {
        rcgen::generate_simple_self_signed(
            names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>(),
        )
        .unwrap()
    };
    let (ours, theirs) = (pair(&["a.example"]), pair(&["b.example"]));
    let cert = write("cert.pem", &ours.cert.pem());
    let key = write("key.pem", &ours.signing_key.serialize_pem());
    let other_key = write("other.pem", &theirs.signing_key.serialize_pem());
    let text = write("text.pem", "not PEM at all");
    let torn = write("torn.pem", &ours.cert.pem()[..200]);
    let missing = dir.path().join("missing.pem");
    let show = |path: &Path| path.display().to_string();

    let cas = [
        (&cert, "built", ""),
        (&missing, "ca_file", "No such file"),
        (&text, "ca_file", "holds no PEM block of a certificate"),
        (&key, "ca_file", "holds no PEM block of a certificate"),
        (&torn, "ca_file", "not PEM"),
    ];
    for (path, setting, what) in cas {
        let said = problem(&Config { ca_file: Some(path.clone()), ..config("https://host") });
        assert!(said.contains(setting) && said.contains(what), "{said}");
        assert!(setting == "built" || said.contains(&show(path)), "{said}");
    }
    let pairs = [
        (&cert, &key, "built", None),
        (&missing, &key, "client_cert", Some(&missing)),
        (&cert, &missing, "client_key", Some(&missing)),
        (&cert, &cert, "holds no PEM block of a private key", Some(&cert)),
        (&key, &key, "holds no PEM block of a certificate", Some(&key)),
        (&cert, &other_key, "do not belong together", Some(&other_key)),
    ];
    for (cert, key, what, named) in pairs {
        let said = problem(&Config {
            client_cert: Some((cert.clone(), key.clone())),
            ..config("http://host")
        });
        assert!(said.contains(what), "{said}");
        assert!(named.is_none_or(|path| said.contains(&show(path))), "{said}");
    }
}
