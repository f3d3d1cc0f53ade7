//! Reads configuration, `.env` and secret files with a size limit, and parses configuration files into values.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::{FileFormat, Format, Map, Value};

use super::encoding::{self, NotUtf8};
use super::problems::{Problems, Source};
use super::{foreign_file, yaml};
use crate::bounded_file;
use crate::secret::Secret;

/// The size limit of configuration and `.env` files, which are written by hand.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The size limit of files that hold a secret.
const SECRET_FILE_BYTES_MAX: u64 = 64 * 1024;

/// A parsed configuration file whose values are not yet checked. Not `Debug`, because it holds secrets.
pub(super) struct ConfigFile {
    /// Its path as it was given, for messages.
    pub(super) name: Arc<str>,
    /// Its directory, from which paths in the file start.
    pub(super) directory: PathBuf,
    /// Its content.
    pub(super) table: Map<String, Value>,
}

impl ConfigFile {
    /// Reads the file `path`, which messages call `name`. Reports problems.
    pub(super) fn read(path: &Path, name: &Path, problems: &mut Problems) -> Option<Self> {
        let name: Arc<str> = name.display().to_string().into();
        let table = text(path).and_then(|text| parse(path, &text)).and_then(|table| {
            match foreign_file::recognise(&table) {
                None => Ok(table),
                Some(what) => Err(what),
            }
        });
        let directory = path.parent().unwrap_or(Path::new("")).to_owned();
        match table {
            Ok(table) => Some(Self { name, directory, table }),
            Err(why) => {
                problems.add(&Source::File(name), "", why);
                None
            }
        }
    }

    pub(super) fn source(&self) -> Source {
        Source::File(Arc::clone(&self.name))
    }
}

/// The text of a `.env` file, and a warning. Bytes that are not UTF-8 become U+FFFD, because they matter only in variables
/// that are used.
pub(super) fn dotenv_text(path: &Path) -> Result<(String, Option<String>), String> {
    match encoding::text(bytes(path)?) {
        Ok(text) => Ok((text, None)),
        Err(NotUtf8::Bytes { line, lossy }) => {
            let warning = format!("{}; the rest was read", NotUtf8::Bytes { line, lossy: String::new() });
            Ok((lossy, Some(warning)))
        }
        Err(wide @ NotUtf8::Wide { .. }) => Err(wide.to_string()),
    }
}

/// The secret in the file `path`, without line ends after it.
pub(super) fn read_secret(path: &Path) -> Result<Secret, String> {
    let shown = path.display();
    let bytes = bounded_file::read(path, SECRET_FILE_BYTES_MAX).map_err(|why| format!("{shown} {why}"))?;
    let text = encoding::text(bytes).map_err(|why| format!("{shown} {why}"))?;
    Ok(Secret::new(text.trim_end_matches(['\n', '\r'])))
}

fn text(path: &Path) -> Result<String, String> {
    encoding::text(bytes(path)?).map_err(|why| why.to_string())
}

fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    bounded_file::read(path, FILE_BYTES_MAX).map_err(|why| why.to_string())
}

/// The start of a parser's message if the whole file is one text. The text follows it.
const ONE_TEXT: &str = "invalid type: string ";

fn parse(path: &Path, text: &str) -> Result<Map<String, Value>, String> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let (format, format_name) = match extension.to_ascii_lowercase().as_str() {
        "toml" => (FileFormat::Toml, "TOML"),
        "json" => (FileFormat::Json, "JSON"),
        "yaml" | "yml" => (FileFormat::Yaml, "YAML"),
        "php" => {
            return Err("is PHP, which pusherd does not read: use the .env of the application".to_owned());
        }
        _ => return Err("must have a name that ends in .toml, .json, .yaml or .yml".to_owned()),
    };
    if format_name == "YAML" {
        yaml::check(text, FILE_BYTES_MAX)?;
    }
    Format::parse(&format, None, text)
        .map_err(|error| format!("is not valid {format_name}: {}", without_excerpt(&error.to_string())))
}

/// The message of a parser without the lines that quote the file, because they may hold a secret. Such lines have a margin:
/// `3 | secret = "…`.
fn without_excerpt(message: &str) -> String {
    if message.starts_with(ONE_TEXT) {
        return "it is one text, without settings".to_owned();
    }
    let is_excerpt = |line: &str| {
        let after_number = line.trim_start().trim_start_matches(|char: char| char.is_ascii_digit());
        after_number.trim_start().starts_with('|')
    };
    let kept: Vec<_> = message.lines().filter(|line| !is_excerpt(line)).map(str::trim).collect();
    kept.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_a_parser_does_not_quote_the_file() {
        let table = [
            ("a.toml", "secret = \"hunter2\nx = 1", "line 1"),
            ("a.toml", "[[apps]]\nsecret = hunter2\n", "line 2"),
            ("a.toml", "secret = '''hunter2\nhunter2\n", "line"),
            ("a.toml", "secret = 'hunter2' hunter2", "line 1"),
            ("a.json", "{\"secret\": \"hunter2", "line 1"),
            ("a.json", "{\"secret\": hunter2}", "line 1"),
            ("a.json", "[\"hunter2\"]", "sequence"),
            ("a.json", "\"hunter2\"", "one text"),
            ("a.yaml", "secret: \"hunter2\nkey: [", "line"),
            ("a.yaml", "secret: hunter2: 3", "line 1"),
            ("a.yaml", "[apps]\nsecret = 'hunter2'", "line 2"),
            ("a.yaml", "apps\nsecret = 'hunter2'", "one text"),
            ("a.yaml", "secret: @hunter2", "line 1"),
            ("a.yaml", "a: 1\n---\nb: 2", "documents"),
            ("a.yaml", "a: &a [x, *a]\nb: hunter2: 3", "line 2"),
            ("a.yaml", &"- ".repeat(200), "nested deeper than 128"),
            ("a.yaml", &"[".repeat(100_000), "not valid YAML"),
            ("a.json", &"[".repeat(200), "recursion limit"),
            ("a.toml", &format!("a = {}", "[".repeat(200)), "recursion depth"),
            ("reverb.php", "<?php return ['secret' => 'hunter2'];", "is PHP"),
            ("a.ini", "", ".toml"),
            ("a", "", ".toml"),
        ];
        for (name, text, expected) in table {
            let why = parse(Path::new(name), text).unwrap_err();
            assert!(why.contains(expected) && !why.contains("hunter2"), "{text:?}: {why}");
        }
    }

    #[test]
    fn an_empty_file_has_no_settings() {
        for (name, text) in [("a.toml", ""), ("a.json", "{}"), ("a.yaml", ""), ("a.yml", "# nothing\n")] {
            assert_eq!(parse(Path::new(name), text).map(|table| table.len()), Ok(0), "{name} {text:?}");
        }
    }

    #[test]
    fn line_ends_after_a_secret_in_a_file_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        for (text, expected) in
            [("s3cret\n", "s3cret"), ("s3cret\r\n", "s3cret"), (" a\nb ", " a\nb "), ("\u{feff}s", "s")]
        {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read_secret(&path).unwrap().expose(), expected);
        }
        std::fs::write(&path, b"hunter2\xff").unwrap();
        assert!(read_secret(&path).unwrap_err().contains("is not UTF-8 text: line 1 "));
        std::fs::write(&path, b"\xff\xfeh\0i\0").unwrap();
        assert!(read_secret(&path).unwrap_err().contains("is UTF-16 text (UTF-16LE)"));
        assert!(
            read_secret(directory.path())
                .unwrap_err()
                .ends_with("is a directory, and must be a regular file")
        );
        assert!(read_secret(&directory.path().join("none")).unwrap_err().ends_with("does not exist"));
        std::fs::write(&path, vec![b'x'; 64 * 1024 + 1]).unwrap();
        assert!(read_secret(&path).unwrap_err().ends_with("is larger than 64 KiB"));
    }
}
