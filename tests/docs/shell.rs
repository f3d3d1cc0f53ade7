//! Commands as they stand on pages and in workflows: those that are ours exist and are put right.

use clap::Parser as _;
use clap::error::ErrorKind;

use super::pages::{read, root};

/// What may stand in front of a command.
const LEADING: [&str; 17] = [
    "$", "sudo", "exec", "env", "nohup", "time", "nice", "if", "while", "until", "then", "do", "else", "!",
    "{", "(", "&&",
];

/// Subcommands of cargo that come with it, or that our scripts install.
const CARGO: [&str; 15] = [
    "build", "run", "test", "bench", "check", "clippy", "fmt", "doc", "install", "nextest", "fuzz", "deny",
    "miri", "update", "tree",
];

/// Checks the lines of a script.
///
/// # Errors
/// The first of our commands that is wrong.
pub fn check(script: &str) -> Result<(), String> {
    for words in commands(script)? {
        let command = command(&words);
        command_is_right(&command).map_err(|why| format!("{}: {why}", command.join(" ")))?;
    }
    Ok(())
}

/// The commands of a script, as words: pipes and lists taken apart.
fn commands(script: &str) -> Result<Vec<Vec<String>>, String> {
    let mut commands = Vec::new();
    let mut lines = script.lines();
    while let Some(line) = lines.next() {
        let mut text = line.to_owned();
        // Quotes that are open and a line that ends with `\` go on in the next one.
        let words = loop {
            let continued = text.strip_suffix('\\').map(str::to_owned);
            match (continued, shlex::split(&text)) {
                (None, Some(words)) => break words,
                (continued, _) => {
                    let next = lines.next().ok_or_else(|| format!("{line}: this does not end"))?;
                    text =
                        continued.map_or_else(|| format!("{text}\n{next}"), |text| format!("{text} {next}"));
                }
            }
        };
        if let Some(end) = words.iter().find_map(|word| word.strip_prefix("<<")) {
            let end = end.trim_start_matches('-');
            while lines.next().is_some_and(|line| line.trim() != end) {}
        }
        let mut command = Vec::new();
        for word in words {
            if ["|", "||", "&&", ";", "&", ";;"].contains(&word.as_str()) {
                commands.push(std::mem::take(&mut command));
            } else if let Some(word) = word.strip_suffix(';') {
                command.push(word.to_owned());
                commands.push(std::mem::take(&mut command));
            } else {
                command.push(word);
            }
        }
        commands.push(command);
    }
    Ok(commands)
}

/// A command without what stands in front of it, and without redirections behind it.
fn command(words: &[String]) -> Vec<&str> {
    let is_assignment = |word: &str| {
        word.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        })
    };
    let mut words: Vec<_> = words.iter().map(String::as_str).collect();
    let mut after_sudo = false;
    while let Some(&first) = words.first() {
        if LEADING.contains(&first) || is_assignment(first) {
            after_sudo = first == "sudo";
            words.remove(0);
        } else if after_sudo && first.starts_with('-') {
            // `sudo -u USER`, and flags without a value.
            words.drain(..if ["-u", "-g"].contains(&first) { 2.min(words.len()) } else { 1 });
        } else {
            break;
        }
    }
    let is_redirection = |word: &&str| {
        word.trim_start_matches(|c: char| c.is_ascii_digit() || c == '&').starts_with(['>', '<'])
    };
    let end = words.iter().position(is_redirection).unwrap_or(words.len());
    words.truncate(end);
    words
}

fn is_pusherd(word: &str) -> bool {
    word.rsplit('/').next() == Some("pusherd")
}

/// Whether a command is right, as far as it is ours.
fn command_is_right(words: &[&str]) -> Result<(), String> {
    let Some((&program, arguments)) = words.split_first() else { return Ok(()) };
    let script = program.strip_prefix("./").unwrap_or(program);
    match program {
        _ if is_pusherd(program) => parses(arguments),
        "cargo" => cargo(arguments),
        // The image, or the program in a container; a container may be called so too.
        "docker" | "podman" | "kubectl" if arguments.iter().any(|word| ["run", "exec"].contains(word)) => {
            let is_ours = |word: &&str| is_pusherd(word.split(':').next().unwrap_or_default());
            match arguments.iter().rposition(is_ours) {
                Some(at) if at + 1 < arguments.len() => parses(&arguments[at + 1..]),
                _ => Ok(()),
            }
        }
        _ if script.starts_with("scripts/") || script.starts_with(".ci/") => our_script(script, arguments),
        _ => Ok(()),
    }
}

/// Whether pusherd knows this command line.
fn parses(arguments: &[&str]) -> Result<(), String> {
    let line = std::iter::once("pusherd").chain(arguments.iter().copied());
    match pusherd::cli::Cli::try_parse_from(line) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => Ok(()),
        Err(error) => {
            let text = error.to_string();
            Err(text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned())
        }
    }
}

fn cargo(arguments: &[&str]) -> Result<(), String> {
    let arguments: Vec<_> = arguments.iter().filter(|word| !word.starts_with('+')).copied().collect();
    let (ours, theirs) = match arguments.iter().position(|word| *word == "--") {
        Some(at) => (&arguments[..at], &arguments[at + 1..]),
        None => (&arguments[..], &[][..]),
    };
    let subcommand = ours.first().copied().unwrap_or_default();
    if !subcommand.starts_with('-') && !CARGO.contains(&subcommand) {
        return Err("cargo has no such subcommand".to_owned());
    }
    let value = |flag: &str| {
        let at = ours.iter().position(|word| *word == flag)?;
        ours.get(at + 1).copied()
    };
    let manifest = value("--manifest-path").unwrap_or("Cargo.toml");
    if !root().join(manifest).is_file() {
        return Err(format!("there is no {manifest}"));
    }
    let folder = manifest.strip_suffix("Cargo.toml").unwrap_or_default();
    for (flag, target) in [("--test", "tests"), ("--bench", "benches")] {
        if let Some(name) = value(flag)
            && ![format!("{folder}{target}/{name}.rs"), format!("{folder}{target}/{name}/main.rs")]
                .iter()
                .any(|file| root().join(file).is_file())
        {
            return Err(format!("there is no {name} in {folder}{target}"));
        }
    }
    let built_in = ["dev", "release", "test", "bench"];
    if let Some(profile) = value("--profile")
        && !built_in.contains(&profile)
        && !read(manifest).contains(&format!("[profile.{profile}]"))
    {
        return Err(format!("{manifest} has no profile {profile}"));
    }
    if subcommand == "run" && manifest == "Cargo.toml" { parses(theirs) } else { Ok(()) }
}

/// Whether a script is there, can be executed, and knows the flags. `scripts/test` knows its parts too.
fn our_script(script: &str, arguments: &[&str]) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = root().join(script);
    let is_executable =
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    if !is_executable {
        return Err(format!("there is no script {script}"));
    }
    let text = read(script);
    let libraries = ["scripts/lib.sh", "scripts/loadlib.py"].map(read).concat();
    for argument in arguments {
        let flag = argument.split('=').next().unwrap_or_default();
        if flag.starts_with("--") && !names(&text, flag) && !names(&libraries, flag) {
            return Err(format!("{script} has no {flag}"));
        }
        if script == "scripts/test" && !text.contains(&format!("scripts/test {argument} ")) {
            return Err(format!("{script} has no part {argument}"));
        }
    }
    Ok(())
}

/// Whether a text has a flag as a word.
fn names(text: &str, flag: &str) -> bool {
    let is_end = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '-');
    text.match_indices(flag).any(|(at, _)| is_end(&text[at + flag.len()..]))
}

#[test]
fn commands_are_found_behind_all_that_stands_in_front_of_them() {
    for right in [
        "pusherd serve --port 6001",
        "sudo -u pusherd FOO=bar /usr/local/bin/pusherd config check --config x.toml > out 2>&1",
        "pusherd --help",
        "cargo run --release --locked -- serve --debug",
        "cargo nextest run --locked --test it tidy",
        "cargo test --manifest-path load/Cargo.toml",
        "cargo build --profile dist --locked",
        "scripts/test rust && scripts/fuzz --seconds 600 websocket | tee log",
        "scripts/dist DIR",
        "docker run --name pusherd -e A=b pusherd:0.2 config check",
        "docker exec pusherd pusherd health --url http://127.0.0.1:6001",
        "docker logs pusherd",
        "cat <<'END' > file\npusherd nonsense\nEND\npusherd health",
        "curl -d '{\n  \"a\": 1\n}' http://127.0.0.1/ # it's fine",
        "if ! pusherd health; then echo no; fi",
    ] {
        assert_eq!(check(right), Ok(()), "{right}");
    }
}

#[test]
fn commands_that_are_wrong_are_found() {
    for (wrong, why) in [
        ("pusherd start", "unrecognized subcommand 'start'"),
        ("pusherd serve \\\n  --prot 6001", "unexpected argument '--prot' found"),
        ("true && sudo pusherd config chek", "unrecognized subcommand 'chek'"),
        ("if pusherd serve --x; then", "unexpected argument '--x' found"),
        ("cargo run -- serv", "unrecognized subcommand 'serv'"),
        ("cargo tets", "cargo has no such subcommand"),
        ("cargo test --test nothing", "there is no nothing in tests"),
        ("cargo build --profile fast", "Cargo.toml has no profile fast"),
        ("cargo fmt --manifest-path no/Cargo.toml", "there is no no/Cargo.toml"),
        ("scripts/nothing", "there is no script scripts/nothing"),
        ("scripts/test ruby", "scripts/test has no part ruby"),
        ("scripts/fuzz --second 1", "scripts/fuzz has no --second"),
        ("docker run -p 1:1 pusherd server", "unrecognized subcommand 'server'"),
        ("echo 'open", "this does not end"),
    ] {
        let found = check(wrong).unwrap_err();
        assert!(found.ends_with(why), "{wrong}: {found}");
    }
}
