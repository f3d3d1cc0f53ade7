//! Scripts: operations that are carried out in one step. Redis runs them by their hashes.

use std::sync::LazyLock;

use redis::{Cmd, ToRedisArgs};

/// One of [`ALL`].
#[derive(Debug)]
pub(super) struct Script {
    text: &'static str,
    hash: String,
}

macro_rules! scripts {
    ($($name:ident: $($file:literal)+;)+) => {
        $(pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(concat!($(include_str!(concat!("scripts/", $file, ".lua"))),+)));)+

        /// All scripts.
        pub(super) static ALL: &[&LazyLock<Script>] = &[$(&$name),+];
    };
}

scripts! {
    UPDATE: "version" "group" "update";
    REAP: "version" "group" "reap";
    SNAPSHOT: "snapshot";
    OCCUPIED: "occupied";
    CACHE: "version" "cache";
    CACHED: "cached";
    RESERVE: "reserve";
    RENEW: "renew";
    CLAIM: "claim";
    RELEASE: "release";
}

impl Script {
    fn new(text: &'static str) -> Self {
        Self { text, hash: redis::Script::new(text).get_hash().to_owned() }
    }

    /// The command that loads the script.
    pub(super) fn load(&self) -> Cmd {
        let mut command = redis::cmd("SCRIPT");
        command.arg("LOAD").arg(self.text);
        command
    }

    /// A call of the script with these keys. The caller appends its arguments.
    pub(super) fn call(&'static self, keys: &[String]) -> Call {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.hash).arg(keys.len()).arg(keys);
        Call { command, script: Some(self) }
    }
}

/// A command, or the call of a script.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) command: Cmd,
    pub(super) script: Option<&'static Script>,
}

impl Call {
    pub(super) fn new(name: &str) -> Self {
        Self { command: redis::cmd(name), script: None }
    }

    pub(super) fn arg(mut self, argument: impl ToRedisArgs) -> Self {
        self.command.arg(argument);
        self
    }
}

/// Replaces a call by hash with one by text, for a Redis that has lost the script.
pub(super) fn by_text(script: &Script, by_hash: &Cmd) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(script.text);
    for argument in by_hash.args_iter().skip(2) {
        if let redis::Arg::Simple(bytes) = argument {
            command.arg(bytes);
        }
    }
    command
}
