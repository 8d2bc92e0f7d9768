//! Answers: where is the workspace, and which targets do its packages have?

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::step;

/// The folder of the workspace's Cargo.toml.
pub(crate) fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// The folder cargo builds into, as the environment or the default says.
pub(crate) fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => std::path::absolute(&folder).unwrap_or_else(|_| folder.into()),
        None => root().join("target"),
    }
}

/// The cargo that runs this program, to be run in the workspace.
pub(crate) fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root());
    command
}

/// The names of the integration tests of `package`, in alphabetical order.
///
/// # Errors
///
/// Fails if cargo cannot read the workspace.
pub(crate) fn tests_of(package: &str) -> Result<Vec<String>> {
    let metadata =
        step::read(cargo().args(["metadata", "--no-deps", "--format-version=1", "--offline"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata is no JSON")?;
    Ok(tests_in(&metadata, package))
}

fn tests_in(metadata: &Value, package: &str) -> Vec<String> {
    let mut names: Vec<String> = entries(&metadata["packages"])
        .filter(|found| found["name"] == package)
        .flat_map(|found| entries(&found["targets"]))
        .filter(|target| entries(&target["kind"]).any(|kind| kind == "test"))
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    names
}

fn entries(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_integration_tests_of_the_package_count() {
        let metadata = serde_json::json!({ "packages": [
            { "name": "lb-tests", "targets": [
                { "name": "net_nat", "kind": ["test"] },
                { "name": "kernel_load", "kind": ["test"] },
                { "name": "demo", "kind": ["bin"] },
            ]},
            { "name": "other", "targets": [{ "name": "net_other", "kind": ["test"] }] },
        ]});
        assert_eq!(tests_in(&metadata, "lb-tests"), ["kernel_load", "net_nat"]);
    }

    #[test]
    fn the_root_is_a_workspace() {
        let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("a Cargo.toml");
        assert!(manifest.contains("[workspace]"));
    }
}
