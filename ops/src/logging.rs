//! How logs are set up: to standard error, as text or as JSON, filtered by `FLOTILLA_LOG`.
//!
//! ERROR means that a person must look; a lost connection is INFO. **Keys and values are never
//! logged**, on any level: they are what our users keep private.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// The environment variable that says what is logged, for example `info` or
/// `flotilla_node=debug,info`.
pub const VARIABLE: &str = "FLOTILLA_LOG";

/// How log lines look.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line, for programs.
    Json,
}

/// Why logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter makes no sense.
    #[error("log filter {filter:?}: {why}; examples: `info`, `warn,flotilla_node=debug`")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        why: String,
    },
    /// It was done before.
    #[error("logs are set up already")]
    Twice,
}

/// Sets up logs for the whole process. [`VARIABLE`] wins over `filter`.
pub fn init(format: Format, filter: &str) -> Result<(), LoggingError> {
    let filter = match std::env::var(VARIABLE) {
        Ok(from_environment) if !from_environment.is_empty() => from_environment,
        _ => filter.to_owned(),
    };
    // A line that can't be written (the disk of a log file is full, the reader of a pipe is gone)
    // is lost. To report that on the same standard error, as is the default, would panic, and end a
    // node that is well.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parse(&filter)?)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    match format {
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .try_init(),
    }
    .map_err(|_| LoggingError::Twice)
}

/// Libraries whose warnings are about what clients and strangers do: as many lines as these like,
/// each about nothing that a person here could mend. Their errors are shown, and all that they say
/// where the filter names them.
const QUIET: &str =
    "h2=error,hyper=error,hyper_util=error,quinn=error,quinn_proto=error,rustls=error";

/// Reads a filter.
fn parse(filter: &str) -> Result<EnvFilter, LoggingError> {
    // A bare word that is no level would be taken for the name of a module, and silence everything
    // else.
    let directives = filter.split(',').map(str::trim).filter(|directive| !directive.is_empty());
    for directive in directives {
        let is_level = ["trace", "debug", "info", "warn", "error", "off"]
            .iter()
            .any(|level| directive.eq_ignore_ascii_case(level));
        if !is_level && !directive.contains(['=', '[']) {
            return Err(LoggingError::Filter {
                filter: filter.to_owned(),
                why: format!("{directive:?} is no level"),
            });
        }
    }
    // Of two directives for one library the later wins.
    EnvFilter::try_new(format!("{QUIET},{filter}"))
        .map_err(|error| LoggingError::Filter { filter: filter.to_owned(), why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_strangers_do_to_libraries_is_shown_only_where_it_is_asked_for() {
        let shown = parse("info").unwrap().to_string();
        assert!(shown.contains("h2=error") && shown.contains("info"), "{shown}");
        let asked = parse("info,h2=debug").unwrap().to_string();
        assert!(asked.contains("h2=debug") && !asked.contains("h2=error"), "{asked}");
    }

    #[test]
    fn filters_are_checked() {
        for good in ["info", "warn,flotilla_node=debug", "", "INFO"] {
            assert!(parse(good).is_ok(), "{good:?}");
        }
        for bad in ["loud", "flotilla_node=loud", "info,chatty"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
