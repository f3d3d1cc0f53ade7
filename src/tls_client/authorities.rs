//! The certificates that a client trusts: those of a file, or those of the system.
//!
//! Errors are said in our own words: the libraries' texts are for their developers.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls_native_certs::ErrorKind;
use tracing::warn;

use crate::bounded_file::{self, FileError};
use crate::pem::{self, Expected};

/// Largest file with certificates: four times the size of a system's bundle.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Certificates of authorities.
#[derive(Debug)]
pub struct Authorities(RootCertStore);

/// No certificates.
impl Default for Authorities {
    fn default() -> Self {
        Self(RootCertStore::empty())
    }
}

/// Why a file of certificates cannot be used. The text begins with its path.
#[derive(Debug, thiserror::Error)]
#[error("{} {why}", path.display())]
pub struct AuthoritiesError {
    path: PathBuf,
    why: String,
}

impl AuthoritiesError {
    fn new(path: &Path, why: impl ToString) -> Self {
        Self { path: path.to_owned(), why: why.to_string() }
    }
}

impl Authorities {
    /// Those in the PEM file `path`. All of them must be usable.
    ///
    /// # Errors
    /// [`AuthoritiesError`].
    pub fn of_file(path: &Path) -> Result<Self, AuthoritiesError> {
        match read(path)? {
            (roots, None) => Ok(Self(roots)),
            (_, Some(error)) => Err(error),
        }
    }

    /// Those that the system trusts, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name, if one of them is set.
    ///
    /// A certificate that cannot be used is left out. A variable without a usable certificate is logged, and so is a system
    /// without any; `user` names the feature that fails then.
    #[must_use]
    pub fn of_system(user: &str) -> Self {
        let (found, problems) = Variables::read().load();
        let errors = problems.join("; ");
        if found.0.is_empty() {
            warn!(errors, "no trusted certificates found on this system: {user} will fail");
        } else if !problems.is_empty() {
            warn!(errors, "not all places of trusted certificates can be used");
        }
        found
    }

    pub(super) fn into_roots(self) -> RootCertStore {
        self.0
    }

    /// Adds certificates, each once: the folder of a system has most of them twice.
    fn add(&mut self, roots: RootCertStore) {
        for root in roots.roots {
            if !self.0.roots.contains(&root) {
                self.0.roots.push(root);
            }
        }
    }

    /// Adds the usable certificates of all files in a directory, except of those in directories below it.
    fn add_directory(&mut self, path: &Path) -> Result<(), AuthoritiesError> {
        let error = |error| AuthoritiesError::new(path, FileError::from(error));
        if !fs::metadata(path).map_err(error)?.is_dir() {
            return Err(AuthoritiesError::new(path, "is no directory"));
        }
        let entries = fs::read_dir(path).map_err(error)?.flatten();
        // `openssl rehash` makes links to each file; links to missing files and directories are skipped.
        let files = entries.filter_map(|entry| fs::canonicalize(entry.path()).ok());
        let files: BTreeSet<_> = files.filter(|file| file.is_file()).collect();
        let (mut is_usable, mut first_error) = (false, None);
        for file in files {
            match read_usable(&file) {
                Ok(roots) => {
                    self.add(roots);
                    is_usable = true;
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        match first_error {
            _ if is_usable => Ok(()),
            Some(error) => {
                Err(AuthoritiesError::new(path, format_args!("has no usable certificate: {error}")))
            }
            None => Err(AuthoritiesError::new(path, "has no file with certificates")),
        }
    }

    /// Adds the certificates of the system, and appends why there are none.
    fn add_platform(&mut self, problems: &mut Vec<String>) {
        let found = rustls_native_certs::load_native_certs();
        self.0.add_parsable_certificates(found.certs);
        if !self.0.is_empty() {
            return;
        }
        problems.extend(found.errors.into_iter().map(|error| match error.kind {
            ErrorKind::Io { inner, path } => AuthoritiesError::new(&path, FileError::from(inner)).to_string(),
            ErrorKind::Os(error) => error.to_string(),
            ErrorKind::Pem(_) | _ => {
                "a file with certificates of the system is not a valid PEM file".to_owned()
            }
        }));
        if problems.is_empty() {
            problems
                .push("none in the usual places: install ca-certificates or set SSL_CERT_FILE".to_owned());
        }
    }
}

/// The variables that replace the certificates of the system, as OpenSSL has them.
#[derive(Debug, Default)]
struct Variables {
    /// `SSL_CERT_FILE`.
    file: Option<OsString>,
    /// `SSL_CERT_DIR`: directories, separated by colons.
    directories: Option<OsString>,
}

impl Variables {
    #[expect(
        clippy::disallowed_methods,
        reason = "no settings: the variables of OpenSSL, which all programs read"
    )]
    fn read() -> Self {
        Self { file: env::var_os("SSL_CERT_FILE"), directories: env::var_os("SSL_CERT_DIR") }
    }

    /// Returns the certificates, and for each place without a usable one the reason.
    fn load(&self) -> (Authorities, Vec<String>) {
        let (mut found, mut problems) = (Authorities::default(), Vec::new());
        let directories = self.directories.iter().flat_map(env::split_paths);
        let directories: Vec<_> = directories.filter(|path| !path.as_os_str().is_empty()).collect();
        if self.file.is_none() && directories.is_empty() {
            found.add_platform(&mut problems);
            return (found, problems);
        }
        match &self.file {
            Some(path) if path.is_empty() => {
                problems.push("SSL_CERT_FILE is empty: unset it, or name a file".to_owned());
            }
            Some(path) => match read_usable(Path::new(path)) {
                Ok(roots) => found.add(roots),
                Err(error) => problems.push(format!("SSL_CERT_FILE: {error}")),
            },
            None => {}
        }
        for path in directories {
            if let Err(error) = found.add_directory(&path) {
                problems.push(format!("SSL_CERT_DIR: {error}"));
            }
        }
        (found, problems)
    }
}

/// Reads the certificates in the file `path` that can be used. If there is none, returns why.
fn read_usable(path: &Path) -> Result<RootCertStore, AuthoritiesError> {
    match read(path)? {
        (roots, Some(error)) if roots.is_empty() => Err(error),
        (roots, _) => Ok(roots),
    }
}

/// Reads the certificates in the file `path`. Returns those that can be used, and what is wrong with the first other one,
/// or with a file that has none.
fn read(path: &Path) -> Result<(RootCertStore, Option<AuthoritiesError>), AuthoritiesError> {
    let error = |why: String| AuthoritiesError::new(path, why);
    let bytes =
        bounded_file::read(path, FILE_BYTES_MAX).map_err(|error| AuthoritiesError::new(path, error))?;
    let (mut roots, mut first_error) = (RootCertStore::empty(), None);
    for (at, certificate) in (1..).zip(CertificateDer::pem_slice_iter(&bytes)) {
        let why = match certificate.map(|certificate| roots.add(certificate)) {
            Ok(Ok(())) => continue,
            Ok(Err(_)) => format!("holds something else than a certificate of X.509 as certificate {at}"),
            Err(_) => format!("is not a valid PEM file: certificate {at} in it is cut off or changed"),
        };
        first_error = first_error.or_else(|| Some(error(why)));
    }
    if roots.is_empty() && first_error.is_none() {
        first_error = Some(error(pem::explain(Expected::Certificates, path, &bytes)));
    }
    Ok((roots, first_error))
}

#[cfg(test)]
mod tests {
    use rcgen::generate_simple_self_signed;
    use tempfile::TempDir;

    use super::*;

    const NO_DER: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    /// A new authority's certificate, in PEM.
    fn certificate() -> String {
        generate_simple_self_signed(["a.test".to_owned()]).unwrap().cert.pem()
    }

    fn write(folder: &TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// The number of certificates that the variables name, and the problems.
    fn load(file: Option<&Path>, directories: Option<&[&Path]>) -> (usize, Vec<String>) {
        let directories = directories.map(|paths| env::join_paths(paths).unwrap());
        let (found, problems) = Variables { file: file.map(Into::into), directories }.load();
        (found.0.len(), problems)
    }

    #[test]
    fn all_certificates_of_a_file_must_be_usable() {
        let (folder, pem) = (tempfile::tempdir().unwrap(), certificate());
        let two = format!("# a comment\n{pem}{}", certificate());
        assert_eq!(Authorities::of_file(&write(&folder, "two", two)).unwrap().0.len(), 2);
        let none = "holds no certificate in PEM (BEGIN CERTIFICATE)";
        let cut_off = |at| format!("is not a valid PEM file: certificate {at} in it is cut off or changed");
        let der = generate_simple_self_signed(["a.test".to_owned()]).unwrap().cert.der().to_vec();
        for (content, expected) in [
            (&b""[..], none.to_owned()),
            (b"hunter2", none.to_owned()),
            (b"\xff\x00\xfe", none.to_owned()),
            (&der, "is a certificate in DER, and must be in PEM".to_owned()),
            (include_bytes!("../../tests/config/certs.p12"), "is PKCS#12 (.p12, .pfx)".to_owned()),
            (&pem.as_bytes()[..pem.len() / 2], cut_off(1)),
            (format!("{pem}{}", pem.replace('M', "!")).as_bytes(), cut_off(2)),
            (
                format!("{pem}{NO_DER}").as_bytes(),
                "holds something else than a certificate of X.509 as certificate 2".to_owned(),
            ),
            (&vec![b'\n'; 1024 * 1024 + 1], "is larger than 1024 KiB".to_owned()),
        ] {
            let path = write(&folder, "ca.pem", content);
            let error = Authorities::of_file(&path).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{} {expected}", path.display())), "{expected}: {error}");
        }
        let missing = folder.path().join("missing");
        let error = Authorities::of_file(&missing).unwrap_err().to_string();
        assert_eq!(error, format!("{} does not exist", missing.display()));
        let error = Authorities::of_file(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with(" is a directory, and must be a regular file"), "{error}");
    }

    #[test]
    fn a_variable_that_names_no_usable_certificate_is_named_with_its_file_and_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let (missing, text) = (folder.path().join("missing"), write(&folder, "text", "hunter2"));
        let broken = write(&folder, "broken", NO_DER);
        for (path, why) in [
            (&missing, "does not exist"),
            (&text, "holds no certificate in PEM (BEGIN CERTIFICATE)"),
            (&broken, "holds something else than a certificate of X.509 as certificate 1"),
        ] {
            let problem = format!("SSL_CERT_FILE: {} {why}", path.display());
            assert_eq!(load(Some(path), None), (0, vec![problem]));
        }
        let empty = "SSL_CERT_FILE is empty: unset it, or name a file";
        assert_eq!(load(Some(Path::new("")), None), (0, vec![empty.to_owned()]));
        let lonely = write(&folder, "lonely/text", "hunter2");
        let none = folder.path().join("none");
        fs::create_dir(&none).unwrap();
        for (path, why) in [
            (&missing, "does not exist".to_owned()),
            (&text, "is no directory".to_owned()),
            (&none, "has no file with certificates".to_owned()),
            (
                &lonely.parent().unwrap().to_owned(),
                format!(
                    "has no usable certificate: {} holds no certificate in PEM (BEGIN CERTIFICATE)",
                    fs::canonicalize(&lonely).unwrap().display()
                ),
            ),
        ] {
            let problem = format!("SSL_CERT_DIR: {} {why}", path.display());
            assert_eq!(load(None, Some(&[path])), (0, vec![problem]));
        }
    }

    #[test]
    fn both_variables_count_and_a_certificate_that_cannot_be_used_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = [certificate(), certificate()];
        let file = write(&folder, "file", format!("{NO_DER}{a}"));
        assert_eq!(load(Some(&file), None), (1, vec![]));
        let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
        write(&folder, "first/a.pem", &a);
        write(&folder, "first/README", "hunter2");
        write(&folder, "first/below/c.pem", certificate());
        write(&folder, "second/bundle.pem", format!("{a}{b}"));
        std::os::unix::fs::symlink(second.join("bundle.pem"), first.join("link")).unwrap();
        std::os::unix::fs::symlink(second.join("missing"), first.join("dangling")).unwrap();
        assert_eq!(load(None, Some(&[&first])), (2, vec![]), "each once, and none of directories below");
        assert_eq!(load(Some(&file), Some(&[&second, Path::new("")])), (2, vec![]));
        assert_eq!(load(None, Some(&[&second, &second])), (2, vec![]), "nothing new is no problem");
        let missing = folder.path().join("missing");
        let problem = format!("SSL_CERT_FILE: {} does not exist", missing.display());
        assert_eq!(load(Some(&missing), Some(&[&second])), (2, vec![problem]));
    }
}
