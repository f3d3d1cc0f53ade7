//! Recognises configuration files of other servers, to report the equivalent settings.
//!
//! Source: the documentation of Soketi ("Configuration"), of Sockudo and of laravel-echo-server, and the files in
//! Laradock.

use config::{Map, Value, ValueKind};

/// A configuration file of another program.
struct Foreign {
    /// The name of the program.
    name: &'static str,
    /// Keys that identify it. A file with any of them is of this program.
    marks: &'static [&'static str],
    /// Its settings, each with the equivalent of pusherd.
    equivalents: &'static [(&'static str, &'static str)],
    /// Further advice.
    advice: &'static str,
}

const SOKETI: &[(&str, &str)] = &[
    ("appManager.array.apps", "[[apps]] with id, key and secret"),
    ("app_manager.array.apps", "[[apps]] with id, key and secret"),
    ("appManager.mysql", "[[apps]], one for each row of the table"),
    ("appManager.postgres", "[[apps]], one for each row of the table"),
    ("host", "server.host"),
    ("port", "server.port"),
    ("pathPrefix", "path_prefix of each app"),
    ("path_prefix", "path_prefix of each app"),
    ("ssl.certPath", "server.tls_cert"),
    ("ssl.cert_path", "server.tls_cert"),
    ("ssl.keyPath", "server.tls_key"),
    ("ssl.key_path", "server.tls_key"),
    ("adapter.driver", "server.cluster"),
    ("database.redis", "[redis]"),
    ("debug", "the flag --debug"),
    ("shutdownGracePeriod", "server.drain_secs"),
    ("channelLimits.maxNameLength", "limits.channel_name_bytes of each app"),
    ("eventLimits.maxChannelsAtOnce", "limits.channels_per_publish of each app"),
    ("eventLimits.maxNameLength", "limits.event_name_chars of each app"),
    ("eventLimits.maxPayloadInKb", "limits.event_data_bytes of each app"),
    ("eventLimits.maxBatchSize", "limits.events_per_batch of each app"),
    ("presence.maxMembersPerChannel", "limits.presence_members of each app"),
    ("presence.maxMemberSizeInKb", "limits.presence_user_info_bytes of each app"),
    ("userAuthenticationTimeout", "authorized_connections_timeout_secs of each app"),
    ("webhooks.batching", "webhook_batching of each app"),
];

const FOREIGN: &[Foreign] = &[
    Foreign {
        name: "Soketi",
        marks: &["appManager", "eventLimits", "channelLimits", "cliAppManager"],
        equivalents: SOKETI,
        advice: "Soketi's variables (SOKETI_…) are read as they are",
    },
    Foreign {
        name: "Sockudo",
        marks: &["app_manager", "event_limits", "channel_limits"],
        equivalents: SOKETI,
        advice: "the credentials stay as they are",
    },
    Foreign {
        name: "laravel-echo-server",
        marks: &["authEndpoint", "authHost", "databaseConfig", "apiOriginAllow"],
        equivalents: &[
            ("host", "server.host"),
            ("port", "server.port"),
            ("sslCertPath", "server.tls_cert"),
            ("sslKeyPath", "server.tls_key"),
            ("clients", "[[apps]] with id, key and secret"),
        ],
        advice: "it speaks socket.io and pusherd the Pusher protocol: set BROADCAST_CONNECTION=pusher in the .env of \
                 the application and broadcaster: 'pusher' in Laravel Echo, with the credentials of an app of pusherd",
    },
    Foreign {
        name: "Centrifugo",
        marks: &["token_hmac_secret_key", "client.token.hmac_secret_key", "client_insecure", "http_api.key"],
        equivalents: &[
            ("port", "server.port"),
            ("address", "server.host"),
            ("allowed_origins", "allowed_origins of each app"),
        ],
        advice: "it speaks a protocol of its own and pusherd the Pusher protocol: the application and its clients need a \
                 Pusher library, with the credentials of an app of pusherd",
    },
    Foreign {
        name: "Docker Compose",
        marks: &["services"],
        equivalents: &[],
        advice: "what pusherd needs of it are the variables of a service, which go into a .env file",
    },
];

/// The problem with `table`, if it is a file of another program.
pub(super) fn recognise(table: &Map<String, Value>) -> Option<String> {
    let Foreign { name, equivalents, advice, .. } =
        FOREIGN.iter().find(|foreign| foreign.marks.iter().any(|path| has(table, path)))?;
    let known: Vec<_> = equivalents
        .iter()
        .filter(|(path, _)| has(table, path))
        .map(|(path, own)| format!("{path} is {own}"))
        .collect();
    let known = if known.is_empty() {
        String::new()
    } else {
        format!("; in a file of pusherd, {}", known.join(", "))
    };
    Some(format!("is a configuration of {name}, which pusherd does not read{known}; {advice}"))
}

/// Whether `table` has a value at `path`, with nested tables or with dotted keys, because Soketi accepts both.
fn has(table: &Map<String, Value>, path: &str) -> bool {
    table.iter().any(|(key, value)| match path.strip_prefix(key.as_str()) {
        Some("") => true,
        Some(rest) => match (rest.strip_prefix('.'), &value.kind) {
            (Some(rest), ValueKind::Table(table)) => has(table, rest),
            _ => false,
        },
        // A longer key is inside the path.
        None => key.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')),
    })
}

#[cfg(test)]
mod tests {
    use config::{FileFormat, Format as _};

    use super::*;

    fn problem(json: &str) -> Option<String> {
        recognise(&FileFormat::Json.parse(None, json).unwrap())
    }

    #[test]
    fn files_of_other_programs_are_recognised_with_the_equivalent_settings() {
        let app = r#"[{"id":"1","key":"k","secret":"hunter2","webhooks":[]}]"#;
        let table = [
            (
                format!(r#"{{"debug":true,"port":6002,"appManager.driver":"array","appManager.array.apps":{app}}}"#),
                "is a configuration of Soketi, which pusherd does not read; in a file of pusherd, \
                 appManager.array.apps is [[apps]] with id, key and secret, port is server.port, debug is the flag \
                 --debug; Soketi's variables (SOKETI_…) are read as they are",
            ),
            (
                format!(r#"{{"ssl":{{"certPath":"/c"}},"appManager":{{"array":{{"apps":{app}}}}},"ssl.keyPath":"/k"}}"#),
                "is a configuration of Soketi, which pusherd does not read; in a file of pusherd, \
                 appManager.array.apps is [[apps]] with id, key and secret, ssl.certPath is server.tls_cert, \
                 ssl.keyPath is server.tls_key; Soketi's variables (SOKETI_…) are read as they are",
            ),
            (
                format!(r#"{{"app_manager":{{"driver":"memory","array":{{"apps":{app}}}}}}}"#),
                "is a configuration of Sockudo, which pusherd does not read; in a file of pusherd, \
                 app_manager.array.apps is [[apps]] with id, key and secret; the credentials stay as they are",
            ),
            (
                r#"{"authHost":"localhost","authEndpoint":"/broadcasting/auth","clients":[],"database":"redis",
                    "databaseConfig":{"redis":{"port":"6379","host":"redis"}},"devMode":true,"host":null,"port":"6001",
                    "protocol":"http","socketio":{},"sslCertPath":"","sslKeyPath":""}"#
                    .to_owned(),
                "is a configuration of laravel-echo-server, which pusherd does not read; in a file of pusherd, host is \
                 server.host, port is server.port, sslCertPath is server.tls_cert, sslKeyPath is server.tls_key, \
                 clients is [[apps]] with id, key and secret; it speaks socket.io",
            ),
            (
                r#"{"debug":false,"presence":true,"admin":true,"admin_password":"hunter2","admin_secret":"hunter2",
                    "client_insecure":false,"token_hmac_secret_key":"hunter2","api_key":"hunter2","engine":"memory",
                    "allowed_origins":["*"],"namespaces":[]}"#
                    .to_owned(),
                "is a configuration of Centrifugo, which pusherd does not read; in a file of pusherd, allowed_origins is \
                 allowed_origins of each app; it speaks a protocol of its own",
            ),
            (
                r#"{"services":{"soketi":{"environment":{"SOKETI_DEBUG":"1"}}}}"#.to_owned(),
                "is a configuration of Docker Compose, which pusherd does not read; what pusherd needs",
            ),
        ];
        for (json, expected) in table {
            let problem = problem(&json).unwrap();
            assert!(problem.starts_with(expected) && !problem.contains("hunter2"), "{json}\n{problem}");
        }
    }

    #[test]
    fn a_file_of_pusherd_is_not_recognised_as_foreign() {
        for json in
            ["{}", r#"{"server":{"port":1,"host":"x"},"apps":[]}"#, r#"{"port":6001}"#, r#"{"appManage":1}"#]
        {
            assert_eq!(problem(json), None, "{json}");
        }
    }
}
