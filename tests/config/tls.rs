//! Certificates.

use super::*;

#[test]
fn the_path_of_a_certificate_is_relative_to_its_source() {
    let (cert, key) = certificate();
    let file = |lines: &str| format!("[server]\n{lines}\n");
    let shown = "valid: 1 app on 127.0.0.1:6001 with TLS; read: ";
    for workspace in [
        Workspace::new()
            .file("tls/cert.pem", &cert)
            .file("tls/key.pem", &key)
            .file("tls/pusherd.toml", file("tls_cert = 'cert.pem'\ntls_key = 'key.pem'"))
            .env("PUSHERD_CONFIG=tls/pusherd.toml"),
        Workspace::new()
            .file("cert.pem", &cert)
            .file("key.pem", &key)
            .file("config/pusherd.toml", "")
            .env("PUSHERD_TLS_CERT=cert.pem\nPUSHERD_TLS_KEY=key.pem"),
        Workspace::new()
            .file("a/cert.pem", &cert)
            .file("a/key.pem", &key)
            .file(".env", "SOKETI_SSL_CERT=a/cert.pem\nSOKETI_SSL_KEY=a/key.pem\n"),
        Workspace::new().file("cert.pem", &cert).file("key.pem", &key).file(
            ".env",
            "LARAVEL_WEBSOCKETS_SSL_LOCAL_CERT=cert.pem\nLARAVEL_WEBSOCKETS_SSL_LOCAL_PK=key.pem\n",
        ),
        // One file may contain both.
        Workspace::new()
            .file("both.pem", format!("{key}{cert}"))
            .env("PUSHERD_TLS_CERT=both.pem\nPUSHERD_TLS_KEY=both.pem"),
    ] {
        let check = workspace.run("config check");
        assert!(check.code == 0 && check.out.starts_with(shown), "{check:?}");
    }
    let workspace = Workspace::new().file("cert.pem", &cert).file("key.pem", &key);
    let workspace =
        workspace.env("PUSHERD_TLS_CERT=cert.pem\nPUSHERD_TLS_KEY=key.pem\nPUSHERD_TLS_PORT=6443");
    let check = workspace.run("config check");
    assert_eq!(check.out, "valid: 1 app on 127.0.0.1:6001 and 127.0.0.1:6443 with TLS; read: no files\n");
    // Blank values, as in a new Laravel .env.
    let blank = "LARAVEL_WEBSOCKETS_SSL_LOCAL_CERT=null\nLARAVEL_WEBSOCKETS_SSL_LOCAL_PK=\n";
    Workspace::new().file(".env", blank).show("").assert("tls_cert", "\"\"", "default");
}

#[test]
fn an_unusable_certificate_is_rejected_with_its_setting_and_file() {
    let ((cert, key), (_, other_key)) = (certificate(), certificate());
    let encrypted = key.replace("PRIVATE", "ENCRYPTED PRIVATE");
    let cert_setting = "environment: PUSHERD_TLS_CERT";
    let key_setting = "environment: PUSHERD_TLS_KEY";
    let broken = "-----BEGIN CERTIFICATE-----\nhunter2!\n-----END CERTIFICATE-----\n";
    let no_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let no_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let table = [
        (
            "",
            key.as_str(),
            format!("{cert_setting}: cert.pem holds no certificate in PEM (BEGIN CERTIFICATE)"),
        ),
        (&key, &key, format!("{cert_setting}: cert.pem holds no certificate in PEM (BEGIN CERTIFICATE)")),
        (broken, &key, format!("{cert_setting}: cert.pem is not a valid PEM file")),
        (
            no_der,
            &key,
            format!("{cert_setting}: cert.pem begins with something else than a certificate of X.509"),
        ),
        (&cert, "hunter2", format!("{key_setting}: key.pem holds no private key in PEM (BEGIN PRIVATE KEY)")),
        (&cert, &encrypted, format!("{key_setting}: key.pem is encrypted with a passphrase")),
        (
            &cert,
            no_key,
            format!(
                "{key_setting}: key.pem holds no key of a supported kind: RSA of 2048 to 4096 bits, ECDSA on"
            ),
        ),
        (
            &cert,
            &other_key,
            format!("{key_setting}: key.pem does not belong to the first certificate of cert.pem"),
        ),
    ];
    for (cert, key, expected) in table {
        let workspace = Workspace::new().file("cert.pem", cert).file("key.pem", key);
        let problem = workspace.env("PUSHERD_TLS_CERT=cert.pem\nPUSHERD_TLS_KEY=key.pem").problem("");
        assert!(problem.starts_with(&expected) && !problem.contains("hunter2"), "{problem}");
    }
    let workspace = Workspace::new().file("cert.pem", &cert).file("key.pem", &key);
    let table = [
        ("tls_cert = 'cert.pem'", "tls_cert: config/cert.pem does not exist"),
        ("tls_key = 'key.pem'", "tls_key: needs tls_cert beside it, which is not set"),
        ("tls_port = 6443", "tls_port: needs tls_cert and tls_key beside it, which are not set"),
        (
            "tls_cert = '../cert.pem'\ntls_key = '../key.pem'\nport = 7001\ntls_port = 7001",
            "tls_port: must be another than port, which is 7001 and has no TLS beside it",
        ),
        ("tls_port = 65536", "tls_port: must be 0 (none) or 1 to 65535, not 65536"),
        ("tls_cert = 'none.pem'\ntls_key = '../key.pem'", "tls_cert: config/none.pem does not exist"),
        (
            "tls_cert = '../cert.pem'\ntls_key = '..'",
            "tls_key: config/.. is a directory, and must be a regular file",
        ),
    ];
    let mut workspace = workspace;
    for (lines, expected) in table {
        workspace = workspace.file("config/pusherd.toml", format!("[server]\n{lines}\n"));
        assert_eq!(workspace.problem(""), format!("config/pusherd.toml: server.{expected}"));
    }
}

/// Whether the server presents this certificate for `localhost`.
fn presents(port: u16, cert: &str) -> bool {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut session =
        rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    session.complete_io(&mut stream).is_ok()
}

#[test]
fn with_a_certificate_the_port_speaks_tls_and_sighup_reloads_it() {
    let (cert, key) = certificate();
    let workspace = Workspace::new().file("cert.pem", &cert).file("key.pem", &key);
    let workspace = workspace.env("PUSHERD_TLS_CERT=cert.pem\nPUSHERD_TLS_KEY=key.pem");
    let (mut running, banner, port) = Running::start(&workspace, "serve --port 0 --drain-secs 0");
    for line in [
        &format!("listening on 127.0.0.1:{port} with TLS\n"),
        "\nPUSHER_HOST=<a name that the certificate is for>\n",
        &format!("\nPUSHER_PORT={port}\nPUSHER_SCHEME=https\n"),
        "\nVITE_PUSHER_SCHEME=\"${PUSHER_SCHEME}\"\n",
        "    forceTLS: (import.meta.env.VITE_PUSHER_SCHEME ?? 'https') === 'https',",
    ] {
        assert!(banner.contains(line), "{line} {banner}");
    }
    for health in [format!("health --port {port}"), format!("health --url https://127.0.0.1:{port}/ready")] {
        let healthy = workspace.run(&health);
        assert_eq!((healthy.code, healthy.err.as_str()), (0, ""), "{health}");
    }
    let plain = workspace.run(&format!("health --url http://127.0.0.1:{port}"));
    assert_eq!(plain.code, 1);
    assert!(
        plain.err.starts_with("pusherd: not ready: status 400: ") && plain.err.contains("TLS"),
        "{plain:?}"
    );
    assert!(presents(port, &cert));

    let (renewed, key) = certificate();
    let workspace = workspace.file("cert.pem", &renewed).file("key.pem", &key);
    running.signal(Signal::HUP);
    assert!((0..10_000).any(|_| presents(port, &renewed)), "the certificate is not renewed");
    assert!(!presents(port, &cert));
    assert_eq!(workspace.run(&format!("health --port {port}")).code, 0);
    running.signal(Signal::TERM);
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}

#[test]
fn a_separate_tls_port_leaves_the_other_port_without_tls() {
    let (cert, key) = certificate();
    let workspace = Workspace::new().file("cert.pem", &cert).file("key.pem", &key);
    // A separate address, because the port is fixed.
    let workspace =
        workspace.env("PUSHERD_TLS_CERT=cert.pem\nPUSHERD_TLS_KEY=key.pem\nPUSHERD_TLS_PORT=6443");
    let line = "serve --host 127.7.6.5 --port 6001 --drain-secs 0";
    let (mut running, banner, port) = Running::start(&workspace, line);
    assert_eq!(port, 6001);
    for line in [
        "listening on 127.7.6.5:6001\n",
        "listening on 127.7.6.5:6443 with TLS\n",
        "\nPUSHER_HOST=127.7.6.5\nPUSHER_PORT=6001\nPUSHER_SCHEME=http\n",
        "\nVITE_PUSHER_HOST=\"<a name that the certificate is for>\"\nVITE_PUSHER_PORT=\"6443\"\n\
         VITE_PUSHER_SCHEME=\"https\"\n",
        "    forceTLS: (import.meta.env.VITE_PUSHER_SCHEME ?? 'https') === 'https',",
    ] {
        assert!(banner.contains(line), "{line} {banner}");
    }
    for health in [
        "health --host 127.7.6.5",
        "health --url https://127.7.6.5:6443",
        "health --url http://127.7.6.5:6001",
    ] {
        let healthy = workspace.run(health);
        assert_eq!((healthy.code, healthy.err.as_str()), (0, ""), "{health}");
    }
    let second = workspace.run("serve --host 127.7.6.5 --port 0");
    assert_eq!(second.code, 1);
    let problem = "cannot listen on 127.7.6.5:6443";
    assert!(second.err.contains(problem), "{second:?}");
    assert!(second.err.contains("server.tls_port: environment: PUSHERD_TLS_PORT"), "{second:?}");
    running.signal(Signal::TERM);
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}
