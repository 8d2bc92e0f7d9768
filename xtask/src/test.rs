//! Answers: does every rung of the tests pass?
//!
//! Rungs find their tests by the name of the test file, so that a new file needs no change here:
//! `tests/tests/kernel_*.rs` and `tests/tests/net_*.rs` are built as the user and run as root,
//! everything else is run as the user.

use std::{
    io::{BufRead as _, BufReader, IsTerminal as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::available_parallelism,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

use crate::{
    program::{self, LB_USER, Profile, TESTS},
    setup::{self, Need},
    step, workspace,
};

/// How long the fuzz rung searches when it runs among the others.
const FUZZ_SECONDS: u64 = 30;

/// Network tests mostly wait for each other's processes, but each brings several.
const MOST_NETWORKS_AT_ONCE: usize = 4;

/// What to test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rung {
    /// Everything below, and 30 seconds of fuzzing
    All,
    /// What needs no root: wire, map layout, data path on the host, plan, configuration
    Unit,
    /// The program in this kernel: loads, stays within its budget, equals the host's
    Kernel,
    /// Real clients and servers in network namespaces
    Net,
}

/// What came of one rung.
#[derive(Debug, Default)]
struct Tally {
    passed: u64,
    failed: u64,
    seconds: f64,
}

/// Runs the tests of `rung` whose names contain `filter`, also after some that failed, and prints
/// the sum. `arguments` go to each test program.
///
/// # Errors
///
/// Fails if a test fails or does not compile, if a rung has no test files, or if no test was run.
pub(crate) fn run(rung: Rung, filter: Option<&str>, arguments: &[String]) -> Result<()> {
    let needs: &[Need] = match rung {
        Rung::Unit | Rung::Kernel => &[Need::Ebpf],
        Rung::Net | Rung::All => &[Need::Ebpf, Need::Network],
    };
    setup::ensure(needs)?;
    if rung != Rung::Unit {
        step::become_root_for("testing XDP programs")?;
    }
    let mut asked = Vec::from_iter(filter.map(str::to_owned));
    asked.extend_from_slice(arguments);

    let mut tallies = Vec::new();
    let mut timed = |name: &'static str, rung: &dyn Fn() -> Result<Tally>| -> Result<()> {
        println!("{name}");
        let began = Instant::now();
        let tally = rung()?;
        let seconds = began.elapsed().as_secs_f64();
        tallies.push((name, Tally { seconds, ..tally }));
        Ok(())
    };
    if matches!(rung, Rung::All | Rung::Unit) {
        timed("unit", &|| unit(&asked))?;
    }
    if rung == Rung::All && filter.is_none() {
        timed("fuzz", &|| Ok(fuzz()))?;
    }
    if matches!(rung, Rung::All | Rung::Kernel) {
        timed("kernel", &|| as_root("kernel_", &asked))?;
    }
    if matches!(rung, Rung::All | Rung::Net) {
        let threads = available_parallelism().map_or(1, usize::from);
        let threads = threads.min(MOST_NETWORKS_AT_ONCE);
        let mut asked = asked.clone();
        asked.push(format!("--test-threads={threads}"));
        timed("net", &|| as_root("net_", &asked))?;
    }
    sum_up(&tallies)
}

/// Prints a line per rung and, last, one that machines read too.
fn sum_up(tallies: &[(&str, Tally)]) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["rung", "passed", "failed", "seconds"]);
    for (name, tally) in tallies {
        table.add_row([
            (*name).to_owned(),
            tally.passed.to_string(),
            tally.failed.to_string(),
            format!("{:.1}", tally.seconds),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let passed: u64 = tallies.iter().map(|(_, tally)| tally.passed).sum();
    let failed: u64 = tallies.iter().map(|(_, tally)| tally.failed).sum();
    println!("\n{table}\n\n{passed} passed, {failed} failed");
    match (passed, failed) {
        (0, 0) => bail!("no test was run: none has that in its name"),
        (_, 0) => Ok(()),
        (_, 1) => bail!("1 test failed"),
        (_, failed) => bail!("{failed} tests failed"),
    }
}

/// The tests of every package that need no root, and the examples in their documentation.
fn unit(asked: &[String]) -> Result<Tally> {
    const PACKAGES: [&str; 4] = ["lb-common", "lb-user", TESTS, "xtask"];
    let packages = PACKAGES.iter().flat_map(|package| ["--package", package]);
    let mut tests = workspace::cargo();
    tests
        .args(["test", "--locked", "--all-features", "--no-fail-fast"])
        .args(packages)
        .args(["--lib", "--bins"]);
    for package in PACKAGES {
        for name in workspace::tests_of(package)? {
            if !(name.starts_with("kernel_") || name.starts_with("net_")) {
                tests.args(["--test", &name]);
            }
        }
    }
    step::run("build unit tests", same(&tests).arg("--no-run"))?;
    let mut tally = count(tests.arg("--").args(asked).args(color()))?;

    let mut examples = workspace::cargo();
    examples
        .args([
            "test",
            "--locked",
            "--all-features",
            "--no-fail-fast",
            "--doc",
        ])
        .args(["--package", "lb-common", "--package", "lb-user", "--"])
        .args(asked);
    tally.add(&count(&mut examples)?);
    Ok(tally)
}

/// The fuzz rung counts as one test.
fn fuzz() -> Tally {
    match program::fuzz(FUZZ_SECONDS) {
        Ok(()) => Tally {
            passed: 1,
            ..Tally::default()
        },
        Err(error) => {
            println!("  {error:#}");
            Tally {
                failed: 1,
                ..Tally::default()
            }
        }
    }
}

/// The tests of `lb-tests` in files called `prefix…`, built as the user and run as root.
fn as_root(prefix: &str, asked: &[String]) -> Result<Tally> {
    let mut names = workspace::tests_of(TESTS)?;
    names.retain(|name| name.starts_with(prefix));
    if names.is_empty() {
        bail!("there is no test file tests/tests/{prefix}*.rs");
    }
    let lb_user = program::compile("lb-user", "lb-user", Profile::Dev)?;
    let variables = [
        (LB_USER, lb_user.display().to_string()),
        ("RUST_BACKTRACE", "1".to_owned()),
    ];
    let mut tally = Tally::default();
    for program in compile(&names)? {
        println!("     Running {} as root", program.display());
        let mut tests = step::as_root(program, &variables);
        tests
            .args(asked)
            .args(color())
            .current_dir(workspace::root().join("tests"));
        tally.add(&count(&mut tests)?);
    }
    Ok(tally)
}

/// Compiles test files of `lb-tests` and returns their programs.
fn compile(names: &[String]) -> Result<Vec<PathBuf>> {
    let mut build = workspace::cargo();
    build.args(["test", "--locked", "--no-run", "--package", TESTS]);
    for name in names {
        build.args(["--test", name]);
    }
    step::run(&format!("build {}", names.join(", ")), &mut same(&build))?;
    // Nothing is left to do: this only tells where the programs are.
    let messages = step::read(build.arg("--message-format=json"))?;
    let programs = executables(&messages);
    if programs.len() != names.len() {
        bail!(
            "cargo built {} programs of {} test files",
            programs.len(),
            names.len()
        );
    }
    Ok(programs)
}

/// The programs named by cargo's messages, one JSON object a line.
fn executables(messages: &str) -> Vec<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["kind"][0] == "test")
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect()
}

/// Runs test programs, shows their output and adds up their closing lines.
fn count(tests: &mut Command) -> Result<Tally> {
    let program = Path::new(tests.get_program()).display().to_string();
    let mut child = tests
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} does not run"))?;
    let output = child.stdout.take().context("a child without stdout")?;
    let mut tally = Tally::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        if let Some(result) = result(&line) {
            tally.add(&result);
        }
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        // It ended before it could count: a crash, or it does not compile.
        println!("{program}: {}", step::ended(status));
        tally.failed = 1;
    }
    Ok(tally)
}

/// What a test program's closing line says: `test result: ok. 3 passed; 0 failed; …`.
fn result(line: &str) -> Option<Tally> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let number = |word: &str| {
        let found = counts.split("; ").find_map(|part| part.strip_suffix(word));
        found?.trim().parse().ok()
    };
    Some(Tally {
        passed: number("passed")?,
        failed: number("failed")?,
        seconds: 0.0,
    })
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.seconds += other.seconds;
    }
}

/// A pipe has no colours, but what is read here is shown on a terminal.
fn color() -> &'static [&'static str] {
    if std::io::stdout().is_terminal() {
        &["--color=always"]
    } else {
        &[]
    }
}

/// The same command again, in the workspace.
fn same(command: &Command) -> Command {
    let mut same = workspace::cargo();
    same.args(command.get_args());
    same
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted_and_others_are_not() {
        let tally = result("test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured")
            .expect("a closing line");
        assert_eq!((tally.passed, tally.failed), (12, 3));
        let coloured = result("test result: \u{1b}[32mok\u{1b}(B\u{1b}[m. 7 passed; 0 failed; ");
        assert_eq!(coloured.map(|tally| tally.passed), Some(7));
        assert!(result("test result of my own: ok").is_none());
        assert!(result("test wire::tests::a ... ok").is_none());
    }

    #[test]
    fn a_program_that_crashes_has_failed() {
        let tally = count(Command::new("sh").args(["-c", "echo running 1 test; kill -9 $$"]))
            .expect("sh runs");
        assert_eq!((tally.passed, tally.failed), (0, 1));
    }

    #[test]
    fn closing_lines_of_several_programs_add_up() {
        let lines = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored'; \
                     echo 'test result: FAILED. 1 passed; 1 failed; 0 ignored'; exit 101";
        let tally = count(Command::new("sh").args(["-c", lines])).expect("sh runs");
        assert_eq!((tally.passed, tally.failed), (3, 1));
    }

    #[test]
    fn a_run_without_any_test_has_failed() {
        assert!(sum_up(&[("net", Tally::default())]).is_err());
        let passed = Tally {
            passed: 1,
            ..Tally::default()
        };
        assert!(sum_up(&[("net", passed)]).is_ok());
    }

    #[test]
    fn only_test_programs_are_run() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"]},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["bin"]},"executable":"/t/lb-user"}
{"reason":"compiler-artifact","target":{"kind":["test"]},"executable":"/t/net_nat-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executables(messages), [PathBuf::from("/t/net_nat-1")]);
    }
}
