//! The binary `flotilla`: reads the command line, and hands over.
//!
//! Exit codes: 0 done, 1 the cluster said no or the node can't run, 2 bad usage, 3 unreachable.

mod commands;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use flotilla_ops::cli;
use std::process::ExitCode;

/// Gives memory back after a load (docs/performance.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What `--version` shows. Who runs a build in which a test could end the process is to see it.
const VERSION: &str = if cfg!(feature = "failpoints") {
    concat!(env!("CARGO_PKG_VERSION"), " with failpoints")
} else {
    env!("CARGO_PKG_VERSION")
};

/// A sharded, strongly consistent key-value store in one binary.
#[derive(Parser)]
#[command(name = "flotilla", version = VERSION, max_term_width = 100, after_help = "Try it:  \
    flotilla dev")]
struct Flotilla {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A real cluster on this machine: one process per node.
    Dev(commands::dev::Dev),
    /// Runs one node.
    Start(commands::start::Start),
    /// Makes certificates.
    #[command(subcommand, after_help = "Example:  flotilla cert ca --out certs")]
    Cert(commands::cert::Cert),
    /// Checks that what a cluster answers is linearizable.
    #[command(name = "check")]
    Check(Box<commands::check::Check>),
    #[command(flatten)]
    Client(cli::Command),
}

fn main() -> ExitCode {
    // Every key of the configuration is a flag of `start`.
    let command = Flotilla::command().mut_subcommand("start", commands::start::add_flags);
    let matches = command.get_matches();
    let flotilla = match Flotilla::from_arg_matches(&matches) {
        Ok(flotilla) => flotilla,
        Err(error) => error.exit(),
    };
    let done = match flotilla.command {
        Command::Dev(dev) => commands::dev::run(&dev),
        Command::Start(start) => {
            let flags =
                matches.subcommand_matches("start").map(commands::start::flags).unwrap_or_default();
            commands::start::run(&start, &flags)
        }
        Command::Cert(cert) => commands::cert::run(&cert),
        Command::Check(check) => return commands::check::run(&check),
        Command::Client(command) => return client(command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            commands::err(&format!("flotilla: {error:#}"));
            let usage = error.is::<flotilla_node::shell::config::ConfigError>()
                || error.is::<commands::Usage>();
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

/// Runs a command that is a client of the HTTP API.
fn client(command: cli::Command) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(cli::run(command)).into(),
        Err(error) => {
            commands::err(&format!("flotilla: start the runtime: {error}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_help_with_an_example() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
                let path = format!("{path} {}", sub.get_name());
                let help = sub
                    .get_after_help()
                    .unwrap_or_else(|| panic!("{path} has no example"))
                    .to_string();
                assert!(help.contains(&format!("flotilla{path}")), "{path}: {help}");
                check(sub, &path);
            }
        }
        let mut command = Flotilla::command().mut_subcommand("start", commands::start::add_flags);
        command.build();
        command.clone().debug_assert();
        check(&command, "");
    }
}
