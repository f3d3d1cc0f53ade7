//! Reads all sources and applies them in their order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::apps::{self, Draft, Drafts};
use super::client_address::ClientAddress;
use super::credentials::CredentialsChoice;
use super::file::{self, ConfigFile};
use super::problems::{Problems, Source};
use super::redis::{self, Redis};
use super::resolve::Resolver;
use super::schema::{LOG, REDIS, SERVER, WEBHOOKS};
use super::section::{self, Section};
use super::settings::{CredentialsSource, Log, Server, Settings, Webhooks};
use super::sources::{DOTENV_FILE, LOCAL_FILE, Sources};
use super::variables::{
    CONFIG, ENV_FILE, LOG_PREFIX, PLATFORM_PORT, SERVER_PREFIX, Variables, WEBHOOKS_PREFIX,
};
use super::warnings::{self, Warning};
use super::{foreign_variables, webhooks};

/// Reads all sources and checks every setting. The order, from the lowest to the highest: defaults, file, variables
/// (`.env` below the environment), flags.
///
/// # Errors
/// All problems of all sources.
pub fn load(sources: &Sources) -> Result<Settings, Problems> {
    let mut problems = Problems::default();
    let mut files = Vec::new();
    let directory = sources.directory.as_path();

    let mut variables = Variables::from_process(&sources.environment);
    let path_in =
        |variables: &Variables, name| variables.non_empty(name).map(|(path, _)| PathBuf::from(path));
    let env_file = sources.env_file.clone().or_else(|| path_in(&variables, ENV_FILE));
    if let Some(path) = sources.find(env_file.as_deref(), &[Path::new(DOTENV_FILE)]) {
        let name: Arc<str> = path.display().to_string().into();
        match file::dotenv_text(&directory.join(path)) {
            Ok((text, warning)) => {
                if let Some(warning) = warning {
                    problems.warn(&Source::File(Arc::clone(&name)), "", warning);
                }
                variables.add_dotenv(&name, &text, &mut problems);
            }
            Err(why) => problems.add(&Source::File(Arc::clone(&name)), "", why),
        }
        files.push(name);
    }
    variables.check_names(&mut problems);

    let config = sources.config.clone().or_else(|| path_in(&variables, CONFIG));
    let path = sources.find(config.as_deref(), &[Path::new(LOCAL_FILE), &sources.system_file]);
    let mut file = path.and_then(|path| ConfigFile::read(&directory.join(path), path, &mut problems));
    files.extend(file.as_ref().map(|file| Arc::clone(&file.name)));

    let mut server = Section::new("server", SERVER, Server::default());
    let mut log = Section::new("log", LOG, Log::default());
    let mut redis = Section::new("redis", REDIS, Redis::default());
    let mut webhooks = Section::new("webhooks", WEBHOOKS, Webhooks::default());
    let mut apps = None;
    if let Some(file) = &mut file {
        let source = file.source();
        for (section, value) in std::mem::take(&mut file.table).into_iter().collect::<BTreeMap<_, _>>() {
            match section.as_str() {
                _ if value.kind == config::ValueKind::Nil => {}
                "server" => server.fill_from_value(value, &source, &mut problems),
                "log" => log.fill_from_value(value, &source, &mut problems),
                "redis" => redis.fill_from_value(value, &source, &mut problems),
                "webhooks" => webhooks.fill_from_value(value, &source, &mut problems),
                "apps" => apps = Some(value),
                _ => {
                    let nested = SERVER.iter().map(|row| server.path(row.key));
                    let sections = ["server", "log", "redis", "webhooks", "apps"].map(str::to_owned);
                    let known: Vec<String> = sections.into_iter().chain(nested).collect();
                    let what = section::unknown_key(&section, known.iter().map(String::as_str));
                    problems.add(&source, &section, what);
                }
            }
        }
    }
    let has_apps = apps.as_ref().is_some_and(|apps| !apps::is_empty(apps));
    let mut choice = CredentialsChoice::choose(&variables, directory, has_apps, &mut problems);
    foreign_variables::check_restricted(&variables, &mut problems);
    let reader = foreign_variables::Reader { variables: &variables, choice: &choice };
    server.fill_from_foreign(SERVER_PREFIX, &reader, &mut problems);
    log.fill_from_foreign(LOG_PREFIX, &reader, &mut problems);
    server.fill_from_variables(SERVER_PREFIX, &variables, &mut problems);
    let has_port = variables.has_platform_port();
    server.fill_from_fallbacks(|_, name| name != PLATFORM_PORT || has_port, &variables, &mut problems);
    log.fill_from_variables(LOG_PREFIX, &variables, &mut problems);
    redis::fill_from_variables(&mut redis, &server, &variables, &mut problems);
    webhooks.fill_from_variables(WEBHOOKS_PREFIX, &variables, &mut problems);
    server.fill_from_flags(&sources.flags, &mut problems);
    log.fill_from_flags(&sources.flags, &mut problems);
    let Drafts { apps, main, is_unambiguous } =
        Drafts::collect(file.as_ref().zip(apps), &variables, &mut choice, &mut problems);

    let config_directory = file.as_ref().map_or(directory, |file| file.directory.as_path());
    let mut resolver =
        Resolver { directory, config_directory, opens_files: sources.opens_files, problems: &mut problems };
    resolver.apply_dependent_defaults(&mut server, &apps, &choice);
    resolver.load_certificate(&mut server);
    webhooks::check_targets(&apps, &webhooks.value.options.allowed_addresses, resolver.problems);
    if apps.iter().any(|app| !app.section.value.webhooks.is_empty()) {
        resolver.choose_dead_letter_file(&mut webhooks, &variables, &sources.state_directory);
    }
    resolver.apply_webhooks(&mut server, &webhooks);
    resolver.apply_cluster(&mut server, &mut redis);
    let client_address = ClientAddress::find(&variables, &choice, &mut problems);
    if !problems.is_empty() {
        return Err(problems);
    }

    let (main_app, key_source) = main;
    let mut warnings = warnings::about_credentials(&choice);
    warnings.extend(warnings::check(&server, &redis, &webhooks, &apps));
    warnings.extend(problems.into_warnings());
    warnings.extend(foreign_variables::unread_warning(&variables, is_unambiguous).map(Warning::new));
    warnings.extend(client_address.as_ref().and_then(|address| address.warning(&server.value)));
    warnings.extend(warnings::publishes_elsewhere(&key_source, &choice, client_address.as_ref()));
    let uses_reverb = choice.uses_reverb();
    let default_secret = apps.iter().any(Draft::has_default_secret);
    let mut shown = vec![
        ("[server]", server.effective()),
        ("[log]", log.effective()),
        ("[redis]", redis.effective()),
        ("[webhooks]", webhooks.effective()),
    ];
    let mut finished = Vec::with_capacity(apps.len());
    for draft in apps {
        let (app, settings) = draft.finish();
        finished.push(app);
        shown.push(("[[apps]]", settings));
    }
    let is_set = |name| variables.non_empty(name).is_some();
    Ok(Settings {
        server: server.value,
        log: log.value,
        apps: finished,
        main_app,
        credentials: CredentialsSource::from(&key_source),
        default_secret,
        client_address,
        uses_reverb,
        warnings,
        files,
        colour: !is_set("NO_COLOR"),
        shown,
    })
}
