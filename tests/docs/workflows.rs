//! What GitHub is told: workflows run what is there, and forms are forms.

use yaml_rust2::{Yaml, YamlLoader};

use super::pages::{files, read};
use super::shell;

fn yaml(name: &str) -> Yaml {
    let mut documents =
        YamlLoader::load_from_str(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(documents.len(), 1, "{name}");
    documents.remove(0)
}

fn workflows() -> Vec<String> {
    files(&["yml"]).into_iter().filter(|file| file.starts_with(".github/workflows/")).collect()
}

/// The steps of all jobs of a workflow.
fn steps(workflow: &Yaml) -> Vec<&Yaml> {
    let jobs = workflow["jobs"].as_hash().unwrap().values();
    jobs.flat_map(|job| job["steps"].as_vec().unwrap()).collect()
}

/// What is wrong with a step: a command of ours that is not there, or an action of no version.
fn fault(step: &Yaml) -> Option<String> {
    match (step["run"].as_str(), step["uses"].as_str()) {
        (Some(script), None) => shell::check(script).err(),
        (None, Some(action)) => {
            let (_, version) = action.split_once('@')?;
            version.is_empty().then(|| format!("{action}: no version"))
        }
        _ => Some("a step has either `run` or `uses`".to_owned()),
    }
}

#[test]
fn every_step_of_a_workflow_is_there() {
    assert!(workflows().len() >= 2);
    for name in workflows() {
        let workflow = yaml(&name);
        for step in steps(&workflow) {
            assert_eq!(fault(step), None, "{name}");
            assert!(step["uses"].as_str().is_none_or(|action| action.contains('@')), "{name}");
        }
        let permissions = workflow["permissions"].as_hash();
        let may_only_read = permissions.is_some_and(|all| {
            all.iter().all(|(_, may)| may.as_str() == Some("read") || may.as_str() == Some("none"))
        });
        assert!(may_only_read, "{name} may do more than read");
    }
}

#[test]
fn pushes_and_pull_requests_run_what_is_run_before_a_change_lands() {
    let workflow = yaml(".github/workflows/ci.yml");
    for event in ["push", "pull_request"] {
        assert!(!workflow["on"][event].is_badvalue(), "{event}");
    }
    assert!(workflow["concurrency"]["group"].as_str().is_some());
    let runs: Vec<_> = steps(&workflow).iter().filter_map(|step| step["run"].as_str()).collect();
    assert!(runs.iter().any(|script| script.lines().any(|line| line.trim() == ".ci/run")), "{runs:?}");
    let manifest = read("Cargo.toml");
    let version =
        manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    let toolchain = workflow["env"]["RUST_VERSION"].as_str().unwrap();
    assert_eq!(toolchain, version, "the workflow and Cargo.toml name two versions of Rust");
}

#[test]
fn what_is_run_before_a_change_lands_is_there() {
    assert_eq!(shell::check(&read(".ci/run")), Ok(()));
}

#[test]
fn a_step_that_is_not_there_is_found() {
    let step = |text: &str| YamlLoader::load_from_str(text).unwrap().remove(0);
    assert_eq!(fault(&step("run: .ci/run")), None);
    assert_eq!(fault(&step("uses: actions/checkout@v4")), None);
    assert!(fault(&step("run: .ci/rum")).unwrap().ends_with("there is no script .ci/rum"));
    assert!(fault(&step("run: |\n  true\n  scripts/nothing")).is_some());
    assert!(fault(&step("uses: actions/checkout@")).is_some());
    assert!(fault(&step("name: nothing")).is_some());
}

#[test]
fn the_forms_for_issues_are_forms() {
    let directory = ".github/ISSUE_TEMPLATE/";
    let forms: Vec<_> = files(&["yml"]).into_iter().filter(|file| file.starts_with(directory)).collect();
    assert_eq!(forms, ["bug.yml", "config.yml", "feature.yml"].map(|name| format!("{directory}{name}")));
    assert!(yaml(&format!("{directory}config.yml"))["blank_issues_enabled"].as_bool().is_some());
    for name in ["bug.yml", "feature.yml"] {
        let form = yaml(&format!("{directory}{name}"));
        assert!(form["name"].as_str().is_some() && form["description"].as_str().is_some(), "{name}");
        for field in form["body"].as_vec().unwrap() {
            let kind = field["type"].as_str().unwrap();
            assert!(
                ["markdown", "input", "textarea", "dropdown", "checkboxes"].contains(&kind),
                "{name}: {kind}"
            );
            let attributes = &field["attributes"];
            let says = if kind == "markdown" { &attributes["value"] } else { &attributes["label"] };
            assert!(says.as_str().is_some_and(|text| !text.is_empty()), "{name}: {field:?}");
            assert_eq!(field["id"].as_str().is_some(), kind != "markdown", "{name}: {field:?}");
        }
    }
}
