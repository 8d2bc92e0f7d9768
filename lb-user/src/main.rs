//! The binary: reads the command line, and prints one line where something is wrong.

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use lb_user::{cli::Cli, commands};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Help and version as clap prints them; an error as one line.
fn usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    let text = error.render().to_string();
    let command = command_of(&text);
    let line = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        // Whoever types nothing at all wants to know what there is.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand if std::env::args().count() == 1 => {
            let _ = error.print();
            return ExitCode::from(2);
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            format!("error: {command} is not a whole command")
        }
        _ => {
            let words: Vec<&str> = text
                .lines()
                .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .collect();
            words.join(" ")
        }
    };
    let _ = writeln!(std::io::stderr(), "{line} (see {command} --help)");
    ExitCode::from(2)
}

/// The command whose usage clap tells: the words before its options and arguments.
fn command_of(text: &str) -> String {
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: "));
    let words: Vec<&str> = usage
        .unwrap_or("lb-user")
        .split_whitespace()
        .take_while(|word| !word.starts_with(['[', '<', '-']))
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_found_in_its_usage() {
        let text = "error: x\n\nUsage: lb-user service add [OPTIONS] <ADDRESS:PORT/PROTOCOL>\n";
        assert_eq!(command_of(text), "lb-user service add");
        assert_eq!(command_of("error: y\n"), "lb-user");
    }
}
