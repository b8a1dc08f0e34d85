//! The `smtpwatch` program, a passive monitor that detects STARTTLS stripping and SMTP credentials in cleartext. Parses
//! the command line and runs the verb; the code is in the library.

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};
use smtpwatch::{cli, log};

fn main() -> ExitCode {
    let matches = cli::Cli::command().get_matches();
    let cli = cli::Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    log::init(cli.log_level, cli.log_format);
    match cli::dispatch(cli, &matches) {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("smtpwatch: {error:#}");
            cli::Exit::of(&error).into()
        }
    }
}
