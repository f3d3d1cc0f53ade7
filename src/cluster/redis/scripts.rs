//! What is done in one step: scripts, which Redis knows by their hashes.

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

        /// All of them.
        pub(super) static ALL: &[&LazyLock<Script>] = &[$(&$name),+];
    };
}

scripts! {
    UPDATE: "version" "stakes" "update";
    REAP: "version" "stakes" "reap";
    LOOK: "look";
    OCCUPIED: "occupied";
    KEEP: "version" "keep";
    KEPT: "kept";
    RESERVE: "reserve";
    RENEW: "renew";
    CLAIM: "claim";
    UNCLAIM: "unclaim";
}

impl Script {
    fn new(text: &'static str) -> Self {
        Self { text, hash: redis::Script::new(text).get_hash().to_owned() }
    }

    /// Has Redis know the script.
    pub(super) fn load(&self) -> Cmd {
        let mut command = redis::cmd("SCRIPT");
        command.arg("LOAD").arg(self.text);
        command
    }

    /// Runs the script, which takes these keys and then what is added to the command.
    pub(super) fn call(&'static self, keys: &[String]) -> Call {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.hash).arg(keys.len()).arg(keys);
        Call { command, script: Some(self) }
    }
}

/// A command, which may be that to run a script.
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

/// The command that runs a script which Redis has forgotten, by its text, in place of `forgotten`.
pub(super) fn by_text(script: &Script, forgotten: &Cmd) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(script.text);
    for argument in forgotten.args_iter().skip(2) {
        if let redis::Arg::Simple(bytes) = argument {
            command.arg(bytes);
        }
    }
    command
}
