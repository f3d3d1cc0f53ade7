//! `.env` files: after any text, a variable is read in each of the forms that Laravel accepts. The input is the text before
//! the variable, and the value.

use std::fs;

use arbitrary::{Arbitrary, Unstructured};
use pusherd::config::{Sources, load};

use super::naive::Folder;

const SECRET: &str = "hunter2hunter2";

#[derive(Arbitrary, Debug)]
struct File<'a> {
    /// The value, and its form.
    value: Vec<u8>,
    style: Style,
    exports: bool,
    comment: bool,
    returns: bool,
    /// The text before the variable.
    before: &'a str,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Style {
    Bare,
    Single,
    Double,
    Nested,
    NestedInQuotes,
}

/// See the module.
pub fn holds(data: &[u8]) {
    let directory = Folder::new();
    let load = |text: &str| {
        fs::write(directory.path().join(".env"), text).unwrap();
        load(&Sources::new([], directory.path().to_owned()))
    };
    // Bytes that are not UTF-8 must not cause a panic.
    fs::write(directory.path().join(".env"), data).unwrap();
    let _ = pusherd::config::load(&Sources::new([], directory.path().to_owned()));

    let Ok(file) = File::arbitrary_take_rest(Unstructured::new(data)) else { return };
    // A key: visible ASCII without the characters that a key cannot have, and a first letter, so that it is no word of
    // env().
    let allowed = |byte: &u8| (33..127).contains(byte) && !b"/?#%:".contains(byte);
    let key: String =
        file.value.iter().filter(|byte| allowed(byte)).take(100).map(|byte| char::from(*byte)).collect();
    let key = format!("k{key}");
    let escaped = key.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$");
    let (more, value) = match file.style {
        Style::Bare if !key.contains("${") => ("".to_owned(), key.clone()),
        Style::Single if !key.contains('\'') => ("".to_owned(), format!("'{key}'")),
        Style::Nested => (format!("FUZZ_KEY=\"{escaped}\"\n"), "${FUZZ_KEY}".to_owned()),
        Style::NestedInQuotes => (format!("FUZZ_KEY=\"{escaped}\"\n"), "\"${FUZZ_KEY}\"".to_owned()),
        _ => ("".to_owned(), format!("\"{escaped}\"")),
    };
    let lines = format!(
        "{more}PUSHERD_APP_ID = 1\nPUSHERD_APP_SECRET='{SECRET}'\n{}PUSHERD_APP_KEY={value}{}\n",
        if file.exports { "export " } else { "" },
        if file.comment { " # and why" } else { "" },
    );
    let lines = if file.returns { lines.replace('\n', "\r\n") } else { lines };
    let alone = load(&lines).unwrap();
    assert_eq!(&*alone.apps[0].keys[0].key, &*key, "{lines}");

    // An open quote in the text before may continue into the variable.
    if file.before.contains(SECRET) {
        return;
    }
    match load(&format!("{}\n{lines}", file.before)) {
        Ok(settings) => assert!(!settings.show().to_string().contains(SECRET)),
        Err(problems) => assert!(!problems.to_string().contains(SECRET), "{problems}"),
    }
    let is_quiet = !file.before.contains(['"', '\'', '=', '$']);
    if is_quiet {
        let settings = load(&format!("{}\n{lines}", file.before)).unwrap();
        assert_eq!(&*settings.apps[0].keys[0].key, &*key);
    }
}
