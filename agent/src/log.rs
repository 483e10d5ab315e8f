//! What the agent logs, and how.

use std::io::{self, IsTerminal as _};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// The words that stand for a level.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The client of the API server logs each attempt; the watches tell what is wrong once. A filter that names it goes
/// first.
const QUIET: &str = "kube_client=off";

/// What is logged.
#[derive(Clone, Debug, Args)]
pub struct LogArgs {
    /// What is logged: a level, or MODULE=LEVEL, several with commas, as `info,portcullis_agent::attach=debug`
    #[arg(long, value_name = "FILTER", env = "PORTCULLIS_LOG", default_value = "info", value_parser = checked)]
    log: String,
    /// How a line of the log looks
    #[arg(long, value_name = "FORMAT", env = "PORTCULLIS_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// To be read by people
    Text,
    /// A JSON object a line
    Json,
}

/// A filter that can be read. A lone word that is no level would be read as a module and silence everything else.
fn checked(text: &str) -> Result<String, String> {
    for part in text.split(',').map(str::trim).filter(|part| !part.contains(['=', '['])) {
        if !LEVELS.iter().any(|level| part.eq_ignore_ascii_case(level)) {
            return Err(format!("`{part}` is no level: write one of {}, or MODULE=LEVEL", LEVELS.join(", ")));
        }
    }
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

impl LogArgs {
    /// Starts to log to stderr. Somebody who embeds this may have started already.
    pub fn init(&self) {
        let filter = EnvFilter::try_new(format!("{QUIET},{}", self.log)).unwrap_or_default();
        let log = tracing_subscriber::fmt().with_writer(io::stderr).with_env_filter(filter);
        let _ = match self.log_format {
            LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).try_init(),
            LogFormat::Json => log.json().try_init(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_means_nothing_is_refused() {
        for good in ["info", "DEBUG", "off", "warn,portcullis_agent::attach=debug", "portcullis_agent=trace"]
        {
            assert_eq!(checked(good).as_deref(), Ok(good));
        }
        for bad in ["", "inf", "info,attach", "portcullis_agent=loud", "x=y=z"] {
            assert!(checked(bad).is_err(), "{bad}");
        }
    }
}
