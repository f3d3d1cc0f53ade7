//! Every code block of a page is what its language says, and what pusherd takes.
//!
//! | language | what is checked |
//! | --- | --- |
//! | `ini` | a `.env` file: the configuration that follows from it is accepted |
//! | `systemd`, `supervisor` | sections and settings, and the commands in them |
//! | `sysctl` | settings of the kernel, one a line |
//! | `toml` | a whole configuration file, which is accepted |
//! | `toml,fragment` | a part of one: unless it has an app, one is put in front of it, to which keys without a section belong |
//! | `json`, `yaml` | it parses; several JSON texts may follow each other |
//! | `sh`, `bash` | commands of pusherd, cargo and the scripts: see `shell` |
//! | `console` | the same, of what stands behind `$ ` |
//! | `nginx`, `caddyfile` | braces and the ends of directives |
//!
//! Other languages are only shown, and a block without one is wrong.

use std::fs;

use pusherd::config::{self, Sources};

use super::pages::{Block, pages};
use super::shell;

/// Languages that are shown, and not checked.
const SHOWN: [&str; 20] = [
    "text",
    "http",
    "js",
    "ts",
    "php",
    "blade",
    "vue",
    "html",
    "python",
    "ruby",
    "go",
    "rust",
    "lua",
    "dockerfile",
    "haproxy",
    "promql",
    "diff",
    "svg",
    "css",
    "mermaid",
];

/// What a configuration must have at least.
const APP: &str = "[[apps]]\nid = \"1\"\nkey = \"k\"\nsecret = \"s\"\n";

fn check(block: &Block) -> Result<(), String> {
    let text = &block.text;
    match block.language.as_str() {
        "" => Err("it has no language: `text` if there is none".to_owned()),
        "systemd" | "supervisor" => unit(text),
        "sysctl" => assignments(text),
        "ini" => configuration(text, ""),
        "toml" => configuration("", text),
        "toml,fragment" if text.contains("[[apps]]") => configuration("", text),
        "toml,fragment" => configuration("", &format!("{APP}{text}")),
        "json" => json(text),
        "yaml" => yaml_rust2::YamlLoader::load_from_str(text).map(|_| ()).map_err(|error| error.to_string()),
        "sh" | "bash" => shell::check(text),
        "console" => shell::check(&typed(text)),
        "nginx" => nginx(text),
        "caddyfile" => braces(text),
        language if SHOWN.contains(&language) => Ok(()),
        language => Err(format!("{language} is none of the languages in tests/docs/blocks.rs")),
    }
}

/// Whether a configuration is accepted that is in these two files and nowhere else. Files that it names are not read,
/// but for those of secrets, which are there.
fn configuration(dotenv: &str, toml: &str) -> Result<(), String> {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let secret = secret.to_str().unwrap();
    fs::write(directory.path().join(".env"), with_secret(dotenv, "SECRET_FILE=", '\n', secret)).unwrap();
    let file = directory.path().join("file.toml");
    fs::write(&file, with_secret(toml, "secret_file = \"", '"', secret)).unwrap();
    let mut sources = Sources::new([], directory.path().to_owned());
    sources.config = Some(file);
    sources.opens_files = false;
    config::load(&sources).map(|_| ()).map_err(|problems| problems.iter().collect::<Vec<_>>().join("; "))
}

/// A text in which what stands between `before` and `after` is `secret`.
fn with_secret(text: &str, before: &str, after: char, secret: &str) -> String {
    let mut pieces = text.split(before);
    let mut made = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        made.push_str(before);
        made.push_str(secret);
        made.push_str(&piece[piece.find(after).unwrap_or(piece.len())..]);
    }
    made
}

/// A unit of systemd or a program of Supervisor.
fn unit(text: &str) -> Result<(), String> {
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) || (line.starts_with('[') && line.ends_with(']')) {
            continue;
        }
        let (key, value) =
            line.split_once('=').ok_or_else(|| format!("{line}: neither a section nor a setting"))?;
        let mut value = value.trim().to_owned();
        while let Some(open) = value.strip_suffix('\\') {
            value = format!("{open}{}", lines.next().unwrap_or_default());
        }
        if key.starts_with("Exec") || key.trim() == "command" {
            shell::check(value.trim_start_matches(['-', '@', '+', '!']))?;
        }
    }
    Ok(())
}

/// Settings of the kernel, `a.b = c`.
fn assignments(text: &str) -> Result<(), String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let wrong = lines.into_iter().find(|line| line.split_once('=').is_none_or(|(key, _)| !key.contains('.')));
    wrong.map_or(Ok(()), |line| Err(format!("{line}: not a setting of the kernel")))
}

/// What is typed in a session: behind `$ `. The rest is what is answered.
fn typed(session: &str) -> String {
    session.lines().filter_map(|line| line.strip_prefix("$ ")).flat_map(|line| [line, "\n"]).collect()
}

fn json(text: &str) -> Result<(), String> {
    let values = serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>();
    let values: Vec<_> = values.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    if values.is_empty() { Err("it is empty".to_owned()) } else { Ok(()) }
}

/// Whether directives end with `;` or a block, and blocks end.
fn nginx(text: &str) -> Result<(), String> {
    let mut depth = 0_usize;
    let mut directive = String::new();
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '#' if directive.is_empty() || directive.ends_with(char::is_whitespace) => {
                while characters.next_if(|c| *c != '\n').is_some() {}
            }
            '\'' | '"' => {
                directive.push(c);
                while characters.next_if(|next| *next != c).is_some() {}
                characters.next().ok_or("a quote does not end")?;
            }
            '$' if characters.next_if_eq(&'{').is_some() => {
                while characters.next_if(|c| *c != '}').is_some() {}
                characters.next();
                directive.push('$');
            }
            ';' => directive.clear(),
            '{' => {
                depth += 1;
                directive.clear();
            }
            '}' if !directive.trim().is_empty() => {
                return Err(format!("{}: no ; behind it", directive.trim()));
            }
            '}' => depth = depth.checked_sub(1).ok_or("a block ends that has not begun")?,
            c => directive.push(c),
        }
    }
    match (directive.trim(), depth) {
        ("", 0) => Ok(()),
        ("", _) => Err("a block does not end".to_owned()),
        (directive, _) => Err(format!("{directive}: no ; behind it")),
    }
}

/// Whether blocks end.
fn braces(text: &str) -> Result<(), String> {
    let mut depth = 0_usize;
    let code = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    for c in code.flat_map(str::chars) {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.checked_sub(1).ok_or("a block ends that has not begun")?,
            _ => {}
        }
    }
    if depth == 0 { Ok(()) } else { Err("a block does not end".to_owned()) }
}

#[test]
fn every_block_is_what_its_language_says() {
    let mut wrong = Vec::new();
    for page in pages() {
        for block in page.blocks() {
            if let Err(why) = check(&block) {
                wrong.push(format!("{}:{} ({}): {why}", page.name, block.line, block.language));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn block(language: &str, text: &str) -> Block {
    Block { language: language.to_owned(), line: 1, text: text.to_owned() }
}

#[test]
fn blocks_that_are_right_are_accepted() {
    for (language, text) in [
        (
            "ini",
            "REVERB_APP_ID=1\nREVERB_APP_KEY=k\nREVERB_APP_SECRET=s\nVITE_REVERB_APP_KEY=\"${REVERB_APP_KEY}\"\n",
        ),
        ("ini", "PUSHERD_APP_ID=1\nPUSHERD_APP_KEY=k\nPUSHERD_APP_SECRET_FILE=/run/secrets/pusherd\n"),
        ("systemd", "[Service]\nExecStart=/usr/local/bin/pusherd serve \\\n    --port 8080\n"),
        ("sysctl", "# more\nnet.core.somaxconn = 4096\n"),
        ("supervisor", "[program:pusherd]\ncommand=/usr/local/bin/pusherd serve\n"),
        ("toml", "[server]\nport = 1\n"),
        ("toml", "[[apps]]\nid = \"1\"\nkeys = [{ key = \"a\", secret_file = \"/run/a\" }]\n"),
        ("toml,fragment", "compression = true\n[server]\nport = 1\n[apps.limits]\nchannels = 1\n"),
        ("toml,fragment", "[[apps.webhooks]]\nurl = \"https://app.example.com/hooks\"\n"),
        ("json", "{\"a\":1}\n{\"b\":\n 2}\n"),
        ("yaml", "a: [1]\n---\nb: 2\n"),
        ("sh", "# one\npusherd serve\n"),
        ("console", "$ pusherd config check\npusherd: nothing is wrong\n"),
        ("nginx", "location / {\n    proxy_set_header A \"x;{\"; # {\n    set $b ${host}x;\n}\n"),
        ("caddyfile", "example.com {\n    reverse_proxy {$UPSTREAM}\n}\n"),
        ("php", "not <looked at"),
    ] {
        assert_eq!(check(&block(language, text)), Ok(()), "{language}: {text}");
    }
}

#[test]
fn blocks_that_are_wrong_are_found() {
    for (language, text, why) in [
        ("", "x", "it has no language"),
        ("shell", "x", "shell is none of the languages"),
        ("ini", "PUSHERD_PROT=6001\n", "PUSHERD_PROT"),
        ("ini", "PUSHERD_PORT=many\n", "PUSHERD_PORT"),
        ("ini", "PUSHER_APP_ID=1\nPUSHER_APP_KEY=k\n", "PUSHER_APP_SECRET"),
        ("systemd", "[Service]\nExecStart=/usr/local/bin/pusherd start\n", "unrecognized subcommand"),
        ("supervisor", "[program:x]\ncommand=pusherd start\n", "unrecognized subcommand"),
        ("systemd", "[Service]\nnothing\n", "neither a section nor a setting"),
        ("sysctl", "net.core.somaxconn 4096\n", "not a setting"),
        ("toml", "[server]\nprot = 1\n", "server.prot"),
        ("toml", "[server\n", "file.toml"),
        ("toml", "[apps.limits]\nchannels = 1\n", "apps"),
        ("toml,fragment", "channels = 1\n", "apps[0].channels"),
        ("json", "{\"a\":1,}", "trailing comma"),
        ("json", "\n", "it is empty"),
        ("yaml", "a: [1\n", "expected ',' or ']'"),
        ("sh", "pusherd start\n", "unrecognized subcommand"),
        ("console", "$ pusherd start\n", "unrecognized subcommand"),
        ("nginx", "location / {\n    proxy_pass http://a\n}\n", "no ; behind it"),
        ("nginx", "location / {\n", "a block does not end"),
        ("nginx", "}\n", "has not begun"),
        ("caddyfile", "example.com {\n", "a block does not end"),
    ] {
        let found = check(&block(language, text)).unwrap_err();
        assert!(found.contains(why), "{language}: {text}: {found}");
    }
}
