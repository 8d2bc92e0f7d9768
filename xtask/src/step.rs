//! Answers: how does xtask run other programs, and what does a person see of it?
//!
//! A [`run`] is one line with its seconds. While it lasts a terminal shows its latest output; all
//! of it goes to a log below `target/xtask`, whose tail is printed if it fails. Programs that speak
//! for themselves (tests, the demo) are shown as they are: [`show`].

use std::{
    fs::File,
    io::{BufRead as _, BufReader, IsTerminal as _, PipeReader, Write as _},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::workspace;

/// Lines of a failed program's output that are worth a look before opening the log.
const TAIL: usize = 100;

/// What cargo says while it works, and what nobody wants to read when it has failed.
const CARGO_PROGRESS: [&str; 8] = [
    "Blocking",
    "Checking",
    "Compiling",
    "Documenting",
    "Downloaded",
    "Downloading",
    "Finished",
    "Updating",
];

/// Runs `command` as one step called `name`. Its output is not shown unless it fails.
///
/// # Errors
///
/// Fails if the program cannot be started or exits with another code than 0.
pub(crate) fn run(name: &str, command: &mut Command) -> Result<()> {
    let log = log_file(name)?;
    let began = Instant::now();
    let spinner = spinner(name);
    let mut file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    writeln!(file, "{command:?}")?;

    let (output, writer) = std::io::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("{} does not run", program(command)))?;
    // The command keeps its ends of the pipe open, which then would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let tail = record(output, &mut file, &spinner)?;
    let status = child.wait()?;
    spinner.finish_and_clear();
    let seconds = began.elapsed().as_secs_f64();
    if status.success() {
        println!("{seconds:>7.1} s  {name}");
        return Ok(());
    }
    println!("{seconds:>7.1} s  {name} failed");
    for line in tail {
        println!("  {line}");
    }
    bail!("{name}: {}, see {}", ended(status), log.display());
}

/// Runs `command` with its output shown, for programs that report to the person themselves.
///
/// # Errors
///
/// Fails if the program cannot be started or exits with another code than 0.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{} does not run", program(command)))?;
    if !status.success() {
        bail!("{}: {}", program(command), ended(status));
    }
    Ok(())
}

/// What `command` prints, whole.
///
/// # Errors
///
/// Fails with what it says on stderr.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} does not run", program(command)))?;
    if !output.status.success() {
        bail!(
            "{}: {}: {}",
            program(command),
            ended(output.status),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `program` to be run as root with `variables` in its environment: by sudo, unless this is root.
pub(crate) fn as_root(program: impl Into<PathBuf>, variables: &[(&str, String)]) -> Command {
    let program = program.into();
    let mut command = if is_root() {
        Command::new("env")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("env");
        sudo
    };
    // Debian keeps ip, nft and nginx where a user's PATH does not lead.
    let path = std::env::var("PATH").unwrap_or_default();
    command.arg(format!("PATH={path}:/usr/sbin:/sbin"));
    for (name, value) in variables {
        command.arg(format!("{name}={value}"));
    }
    command.arg(program);
    command
}

/// Lets sudo ask for its password now, while nothing hides the question. Nothing if this is root.
///
/// # Errors
///
/// Fails if there is no sudo or it refuses.
pub(crate) fn become_root_for(purpose: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let status = Command::new("sudo").arg("--validate").status();
    match status {
        Ok(status) if status.success() => Ok(()),
        _ => bail!("{purpose} needs root and sudo gives it not: run this command as root"),
    }
}

/// Whether this process may do what root may: /proc/self belongs to the effective user.
fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn program(command: &Command) -> String {
    command.get_program().display().to_string()
}

/// How a program ended, in words.
pub(crate) fn ended(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit code {code}"),
        None => status.to_string(),
    }
}

/// Copies `output` into `file` until it ends, and returns its last lines.
fn record(output: PipeReader, file: &mut File, spinner: &ProgressBar) -> Result<Vec<String>> {
    let mut tail = Vec::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        file.write_all(&line)?;
        file.write_all(b"\n")?;
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        spinner.set_message(line.clone());
        let word = line.split_whitespace().next().unwrap_or_default();
        if CARGO_PROGRESS.contains(&word) {
            continue;
        }
        if tail.len() == TAIL {
            tail.remove(0);
        }
        tail.push(line);
    }
    Ok(tail)
}

/// Name, seconds and latest output on one line of a terminal; nothing elsewhere.
fn spinner(name: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("  {elapsed:>7}  {prefix}  {wide_msg:.dim}");
    let spinner = ProgressBar::new_spinner().with_prefix(name.to_owned());
    if let Ok(style) = style {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(200));
    spinner
}

fn log_file(name: &str) -> Result<PathBuf> {
    let folder = workspace::target_dir().join("xtask");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let name: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    Ok(folder.join(name).with_extension("log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_names_its_exit_code_and_its_log() {
        let name = "test of a failing step";
        let error = run(name, Command::new("sh").args(["-c", "echo lost; exit 3"]))
            .expect_err("exit code 3 is a failure")
            .to_string();
        assert!(error.contains("exit code 3"), "{error}");
        let log = std::fs::read_to_string(log_file(name).expect("a log")).expect("a readable log");
        assert!(log.ends_with("lost\n"), "{log}");
    }

    #[test]
    fn a_step_that_cannot_start_is_a_failure() {
        let error = run(
            "test of a missing program",
            &mut Command::new("/no/such/program"),
        )
        .expect_err("there is no such program");
        assert!(error.to_string().contains("/no/such/program"), "{error}");
    }

    #[test]
    fn variables_reach_a_program_run_as_root() {
        let command = as_root("/bin/true", &[("LB_USER", "/a b/lb-user".to_owned())]);
        let arguments: Vec<_> = command.get_args().collect();
        assert!(arguments.iter().any(|&a| a == "LB_USER=/a b/lb-user"));
        assert_eq!(*arguments.last().expect("a program"), "/bin/true");
    }
}
