//! The settings of clients, on pages and in the examples.

use super::pages::{pages, read};

/// The value of `name` in an object of JavaScript.
fn value<'a>(code: &'a str, name: &str) -> Option<&'a str> {
    let at = code.find(&format!("{name}:"))? + name.len() + 1;
    code[at..].split([',', '\n', '}']).next().map(str::trim)
}

/// pusher-js uses `wssPort` where it uses TLS, and 443 if it is not set, whatever `wsPort` is.
#[test]
fn clients_that_are_given_a_port_use_it_with_tls_as_well() {
    let mut codes: Vec<(String, String)> = vec![("app.js".to_owned(), read("examples/chat/public/app.js"))];
    for page in pages() {
        codes.extend(page.blocks().into_iter().map(|block| (page.name.clone(), block.text)));
    }
    codes.retain(|(_, code)| value(code, "wsPort").is_some());
    assert!(codes.len() >= 3 && codes[0].0 == "app.js", "{codes:#?}");
    for (name, code) in codes {
        assert_eq!(value(&code, "wssPort"), value(&code, "wsPort"), "{name}: {code}");
    }
}
