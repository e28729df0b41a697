//! `flotilla start`: one node, in the foreground, until it is told to stop.

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Args};
use flotilla_node::shell::config::{Config, ConfigError, fits_the_disk, flag};
use flotilla_node::shell::private::{self, PidFile};
use flotilla_node::shell::start;
use flotilla_ops::logging;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

/// Runs one node, in the foreground. SIGTERM and Ctrl-C end it in good order: leadership is handed
/// over first. SIGHUP has it read its certificates again.
#[derive(Args)]
#[command(
    after_help = "Example:  flotilla start --config n1/flotilla.toml --raft-election-ticks 20\n\n\
                  Every key of the file is also a flag, which wins. Its value is text as it is, \
                  all else as in TOML; a relative path is relative to where it is typed. `flotilla \
                  dev` makes files to start from."
)]
pub(crate) struct Start {
    /// The configuration file.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Shows the configuration in force, and ends.
    #[arg(long)]
    print_config: bool,
    /// Ends when the process that started it does.
    #[arg(long, hide = true)]
    with_parent: bool,
}

/// Adds a flag for every key of the configuration.
pub(crate) fn add_flags(mut command: clap::Command) -> clap::Command {
    for (key, default) in Config::keys() {
        let long = flag(&key).trim_start_matches('-').to_owned();
        let help = format!("{key} (default {default})");
        command = command.arg(
            Arg::new(key).long(long).value_name("VALUE").help(help).help_heading("Configuration"),
        );
    }
    command
}

/// The flags that were given: dotted key, and value.
pub(crate) fn flags(matches: &ArgMatches) -> Vec<(String, String)> {
    Config::keys()
        .into_iter()
        .filter_map(|(key, _)| matches.get_one::<String>(&key).cloned().map(|value| (key, value)))
        .collect()
}

/// Runs the node.
pub(crate) fn run(args: &Start, flags: &[(String, String)]) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref(), flags)?;
    if args.print_config {
        return Ok(super::out(config.to_toml().trim_end())?);
    }
    private::keep_private();
    logging::init(config.logging.format, &config.logging.filter).map_err(|error| {
        let from_environment =
            std::env::var_os(logging::VARIABLE).is_some_and(|filter| !filter.is_empty());
        ConfigError::new(format!(
            "{}: {error}",
            if from_environment { logging::VARIABLE } else { "logging.filter" }
        ))
    })?;
    fits_the_disk(&config)?;
    #[cfg(feature = "failpoints")]
    flotilla_storage::failpoint::arm().map_err(anyhow::Error::msg)?;
    if args.with_parent {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
            .context("follow the parent")?;
    }
    // A thread that panics leaves the others in a state that nobody thought through. A restart is
    // what the disk is for.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        tracing::error!("a thread panicked, the process ends: {info}");
        std::process::abort();
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.threads)
        .enable_all()
        .build()?;
    let ended = runtime.block_on(serve(&config));
    // A snapshot that is being built, checked or taken in is nothing to wait for: a restart throws
    // it away, or completes it.
    runtime.shutdown_background();
    ended
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // From here on none of these ends the process: a terminal that is closed, a service manager
    // that says reload, a log rotation.
    let mut hang_up = signal(SignalKind::hangup())?;
    let _ignored = (signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?);
    let node = start::start(config).await?;
    let _pid_file = PidFile::write(&config.pid_file)?;
    tracing::info!(node = %config.node, http = %node.http(), quic = %config.quic, "serving");
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(()) = hang_up.recv() => match node.reload() {
                Ok(()) => tracing::info!("SIGHUP: the certificates were read again; new \
                                          connections use them"),
                Err(error) => tracing::error!(%error, "SIGHUP: the certificates could not be read \
                                                       again; the old ones stay in use"),
            },
        }
    }
    tracing::info!("stopping: handing leadership over");
    tokio::select! {
        ended = node.shutdown() => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
