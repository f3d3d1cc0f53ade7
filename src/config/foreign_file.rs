//! Configuration files of other servers: recognised, so that it can be said what to write instead.
//!
//! Source: the documentation of Soketi ("Configuration"), of Sockudo and of laravel-echo-server, and the files that
//! Laradock brings.

use config::{Map, Value, ValueKind};

/// A kind of file that others read.
struct Foreign {
    /// What it is.
    name: &'static str,
    /// Paths of which any tells it from others, and from a file of pusherd.
    marks: &'static [&'static str],
    /// Its settings, and how each is called here.
    twins: &'static [(&'static str, &'static str)],
    /// What else to do.
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
        twins: SOKETI,
        advice: "Soketi's variables (SOKETI_…) are read as they are",
    },
    Foreign {
        name: "Sockudo",
        marks: &["app_manager", "event_limits", "channel_limits"],
        twins: SOKETI,
        advice: "the credentials stay as they are",
    },
    Foreign {
        name: "laravel-echo-server",
        marks: &["authEndpoint", "authHost", "databaseConfig", "apiOriginAllow"],
        twins: &[
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
        twins: &[
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
        twins: &[],
        advice: "what pusherd needs of it are the variables of a service, which go into a .env file",
    },
];

/// What to say of the file that holds `table`, if another server or program reads it.
pub(super) fn recognise(table: &Map<String, Value>) -> Option<String> {
    let Foreign { name, twins, advice, .. } =
        FOREIGN.iter().find(|foreign| foreign.marks.iter().any(|path| has(table, path)))?;
    let known: Vec<_> = twins
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

/// Whether `table` has something at `path`, by tables within tables or by keys with dots, as Soketi takes both.
fn has(table: &Map<String, Value>, path: &str) -> bool {
    table.iter().any(|(key, value)| match path.strip_prefix(key.as_str()) {
        Some("") => true,
        Some(rest) => match (rest.strip_prefix('.'), &value.kind) {
            (Some(rest), ValueKind::Table(table)) => has(table, rest),
            _ => false,
        },
        // A longer key is within the path.
        None => key.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')),
    })
}

#[cfg(test)]
mod tests {
    use config::{FileFormat, Format as _};

    use super::*;

    fn said(json: &str) -> Option<String> {
        recognise(&FileFormat::Json.parse(None, json).unwrap())
    }

    #[test]
    fn files_of_others_are_recognised_and_it_is_said_what_to_write() {
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
            let said = said(&json).unwrap();
            assert!(said.starts_with(expected) && !said.contains("hunter2"), "{json}\n{said}");
        }
    }

    #[test]
    fn a_file_of_pusherd_is_not_taken_for_another() {
        for json in
            ["{}", r#"{"server":{"port":1,"host":"x"},"apps":[]}"#, r#"{"port":6001}"#, r#"{"appManage":1}"#]
        {
            assert_eq!(said(json), None, "{json}");
        }
    }
}
