//! `recipe`: on the load balancer what its backends need, on a backend what it lacks.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::{print, read};
use crate::{
    api::{RecipeFilter, client::Client},
    cli::Form,
    instance::Instance,
    output,
    recipe::{Recipe, check as looked, shell},
};

/// Prints recipes, as commands or as JSON for [`check`].
pub(super) async fn print(
    client: &Client,
    form: Form,
    service: String,
    backend: Option<String>,
) -> Result<()> {
    let filter = RecipeFilter { service, backend };
    let recipes = client.recipe(&filter).await?;
    ensure!(
        !recipes.is_empty(),
        "service {0:?} has no backends: sudo lb-user backend add {0} ADDRESS:PORT",
        filter.service
    );
    print::show(form, &recipes, |recipes| {
        let scripts: Vec<String> = recipes.iter().map(shell::script).collect();
        scripts.join("\n\n")
    })
}

/// Checks this machine against the recipes in a file.
pub(super) async fn check(instance: &Instance, form: Form, file: &Path) -> Result<()> {
    let (text, origin) = read(file)?;
    let recipes: Vec<Recipe> = serde_json::from_str(&text).with_context(|| {
        format!("{origin} is no recipe: make one on the load balancer with lb-user recipe SERVICE -o json")
    })?;
    let checked = looked::check(&recipes, &instance.pins()).await?;
    print::show(form, &checked, |checked| output::checked(checked))?;
    let missing = checked.iter().filter(|c| c.met == Some(false)).count();
    if missing > 0 {
        bail!("{missing} of {} needs are not met", checked.len());
    }
    Ok(())
}
