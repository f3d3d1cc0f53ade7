//! The executable and its configuration, with the real binary.
#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use pusherd::protocol::signature::SigningKey;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

#[path = "config/apps.rs"]
mod apps;
#[path = "config/inputs.rs"]
mod inputs;
#[path = "config/redis.rs"]
mod redis;
#[path = "config/serve.rs"]
mod serve;
#[path = "config/sources.rs"]
mod sources;
#[path = "config/tls.rs"]
mod tls;
#[path = "config/webhooks.rs"]
mod webhooks;

/// A working directory and an environment for commands of pusherd.
struct Workspace {
    directory: TempDir,
    environment: BTreeMap<String, String>,
}

/// The result of a command.
#[derive(Debug)]
struct Run {
    code: i32,
    out: String,
    err: String,
}

impl Workspace {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), environment: BTreeMap::new() }
    }

    fn file(self, name: &str, text: impl AsRef<[u8]>) -> Self {
        let path = self.directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// Sets variables, one a line.
    fn env(mut self, lines: &str) -> Self {
        for (name, value) in lines.lines().filter_map(|line| line.split_once('=')) {
            self.environment.insert(name.to_owned(), value.to_owned());
        }
        self
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pusherd"));
        command.args(line.split_whitespace()).current_dir(self.directory.path());
        command.env_clear().envs(&self.environment).stdin(Stdio::null());
        command
    }

    fn run(&self, line: &str) -> Run {
        let Output { status, stdout, stderr } = self.command(line).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Run { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
    }

    /// Runs `config show`, which must succeed.
    fn show(&self, flags: &str) -> Shown {
        let run = self.run(&format!("config show {flags}"));
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{run:?}");
        Shown(run.out)
    }

    /// The problems that `config check` reports, in order; `serve` must report the same.
    fn problems(&self, flags: &str) -> Vec<String> {
        let check = self.run(&format!("config check {flags}"));
        let serve = self.run(&format!("serve {flags}"));
        assert_eq!((check.code, serve.code), (78, 78), "{check:?} {serve:?}");
        assert_eq!(check.err, serve.err);
        assert_eq!(check.out, "");
        check.err.lines().skip(1).map(|line| line.trim().to_owned()).collect()
    }

    fn problem(&self, flags: &str) -> String {
        let problems = self.problems(flags);
        assert_eq!(problems.len(), 1, "{problems:#?}");
        problems.into_iter().next().unwrap()
    }
}

/// The output of `config show`.
struct Shown(String);

impl Shown {
    /// The value and the source of the last setting `key`. Keys of the section `[redis]` are `redis.key`.
    fn get(&self, key: &str) -> (String, String) {
        let (before, redis) = self.0.split_once("\n[redis]\n").unwrap();
        let (redis, after) = redis.split_once("\n[webhooks]\n").unwrap();
        let (parts, name) = match key.strip_prefix("redis.") {
            Some(name) => (["", redis], name),
            None => ([before, after], key),
        };
        let of_name = |line: &str| {
            let (setting, source) = line.rsplit_once(" # ")?;
            let (found, value) = setting.split_once(" = ")?;
            (found == name).then(|| (value.trim().to_owned(), source.to_owned()))
        };
        let mut lines = parts.iter().rev().flat_map(|part| part.lines().rev());
        lines.find_map(of_name).unwrap_or_else(|| panic!("no {key} in {}", self.0))
    }

    fn assert(&self, key: &str, value: &str, source: &str) {
        assert_eq!(self.get(key), (value.to_owned(), source.to_owned()), "{key}");
    }

    /// All lines, without sources.
    fn values(&self) -> Vec<&str> {
        let lines = self.0.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split(" # ").next().unwrap_or_default().trim()).collect()
    }

    fn apps(&self) -> usize {
        self.0.matches("[[apps]]").count()
    }
}

const APP: &str = "[[apps]]\nid = \"1\"\nkey = \"file-key\"\nsecret = \"file-secret\"\n";

/// The credentials of a family of variables, one a line.
fn credentials(family: &str, id: &str) -> String {
    format!("{family}_ID={id}\n{family}_KEY={id}-key\n{family}_SECRET={id}-secret\n")
}

#[test]
fn every_file_that_comes_with_pusherd_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        assert_ne!(path.file_name().unwrap(), "pusherd.toml", "a clone would start with it");
        let check = Workspace::new().run(&format!("config check --config {}", path.display()));
        assert_eq!((check.code, check.err.as_str()), (0, ""), "{check:?}");
    }
}

#[test]
fn the_example_shows_every_setting_with_its_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/pusherd.example.toml");
    let path = path.to_str().unwrap();
    let example = Workspace::new().show(&format!("--config {path}"));
    let defaults = Workspace::new().show("");
    for (shown, default) in example.0.lines().zip(defaults.0.lines()) {
        let (Some((setting, source)), Some((default, _))) =
            (shown.rsplit_once(" # "), default.rsplit_once(" # "))
        else {
            assert_eq!(shown, default);
            continue;
        };
        // The default depends on the machine, so the example does not set it.
        if setting.starts_with("dead_letter_file = ") {
            assert!(
                source == "default" && file("config/pusherd.example.toml").contains("# dead_letter_file = ")
            );
            continue;
        }
        assert!(source.starts_with(path), "{setting} is not in the example");
        let its_own = ["host = ", "id = ", "key = "].iter().any(|key| setting.starts_with(key));
        assert!(its_own || setting.trim() == default.trim(), "{setting} is not {default}");
    }
}

/// The text of a file of the repository.
fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

#[test]
fn the_container_command_of_the_documentation_causes_no_warning() {
    for (name, text) in ["docs/start/docker.md", "Dockerfile"].map(|name| (name, file(name))) {
        let line = text.lines().find(|line| line.contains("docker run ")).unwrap();
        let line = line.replace("\"$(openssl rand -hex 20)\"", "1f0c3e9a7b5d2c4e6f8091a2b3c4d5e6f7081920");
        let variables: Vec<_> = line
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .chain([("PUSHERD_HOST", "0.0.0.0")])
            .collect();
        assert_eq!(variables.len(), 4, "{name}: {line}");
        let workspace = variables
            .into_iter()
            .fold(Workspace::new(), |workspace, (name, value)| workspace.env(&format!("{name}={value}")));
        let check = workspace.run("config check");
        assert_eq!((check.code, check.err.as_str()), (0, ""), "{name}: {check:?}");
    }
}

#[test]
fn the_unit_of_the_documentation_is_the_one_of_the_examples() {
    let unit = file("examples/systemd/pusherd.service");
    let page = "docs/operate/systemd.md";
    assert!(file(page).contains(unit.trim()), "put examples/systemd/pusherd.service into {page}");
    let setting = |name: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(&format!("{name}="))).unwrap();
        line.to_owned()
    };
    let (program, arguments) =
        setting("ExecStart").split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    assert!(program.ends_with("/pusherd"));
    assert_eq!(Workspace::new().run(&format!("{arguments} --help")).code, 0);
    assert!(
        unit.contains("\n[Install]\n")
            && setting("User") == "pusherd"
            && setting("StateDirectory") == "pusherd"
    );
    let deadline = pusherd::server::Options::default().shutdown_deadline.as_secs();
    assert!(setting("TimeoutStopSec").parse::<u64>().unwrap() > deadline);
}

#[test]
fn the_page_of_settings_has_those_of_this_version() {
    let page = "docs/reference/configuration.md";
    assert!(
        file(page).contains(pusherd::config::reference().trim()),
        "put the output of `pusherd config reference` into {page}"
    );
}

#[test]
fn the_page_of_variables_has_every_one_of_other_servers() {
    let page = "docs/reference/environment.md";
    assert!(
        file(page).contains(pusherd::config::foreign_reference().trim()),
        "put the last table of `pusherd config reference` into {page}"
    );
}

#[test]
fn the_page_of_commands_has_the_help_of_each() {
    let page = "docs/reference/commands.md";
    let text = file(page);
    for command in [
        "",
        "serve",
        "config check",
        "config show",
        "config reference",
        "health",
        "webhooks verify",
        "webhooks replay",
    ] {
        let help = Workspace::new().run(format!("{command} --help").trim()).out;
        assert!(text.contains(help.trim()), "put the output of `pusherd {command} --help` into {page}");
    }
}

#[test]
fn the_reference_has_every_setting_that_is_shown() {
    let reference = Workspace::new().run("config reference").out;
    let mut group = "";
    for line in Workspace::new().show("").0.lines() {
        match line.split_once(" = ") {
            Some((key, _)) => assert!(reference.contains(&format!("| `{group}{key}` |")), "{group}{key}"),
            None if line.starts_with('[') => group = if line == "[apps.limits]" { "limits." } else { "" },
            None => {}
        }
    }
}

/// A certificate for `localhost` and its key, as PEM.
fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// A running server. Dropping it kills it.
struct Running(Child);

impl Running {
    /// Starts `serve`. Returns the output up to the addresses, and the port.
    fn start(workspace: &Workspace, line: &str) -> (Self, String, u16) {
        let mut command = workspace.command(line);
        let json = line.contains("json");
        if json {
            command.stdout(Stdio::null()).stderr(Stdio::piped());
        } else {
            command.stdout(Stdio::piped()).stderr(Stdio::null());
        }
        let mut running = Self(command.spawn().unwrap());
        let output: Box<dyn Read> = if json {
            Box::new(running.0.stderr.take().unwrap())
        } else {
            Box::new(running.0.stdout.take().unwrap())
        };
        let mut lines = BufReader::new(output).lines().map(Result::unwrap);
        let mut text = String::new();
        let port = loop {
            let line = lines.next().unwrap_or_else(|| panic!("it does not listen: {text}"));
            text.push_str(&line);
            text.push('\n');
            if let Some((_, address)) = line.split_once("listening on ") {
                let (_, port) = address.split_once(':').unwrap();
                let port: String = port.chars().take_while(char::is_ascii_digit).collect();
                break port.parse().unwrap();
            }
        };
        // The rest of the banner follows at once.
        while !json && !["\n});\n", "\n  clients  "].iter().any(|end| text.contains(end)) {
            text.push_str(&lines.next().unwrap_or_else(|| panic!("the banner breaks off: {text}")));
            text.push('\n');
        }
        (running, text, port)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
