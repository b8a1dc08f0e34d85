//! smtpwatch: passive monitor that catches STARTTLS stripping and plaintext SMTP credentials.

use std::process::ExitCode;

use clap::Parser;
use smtpwatch::{cli, log};

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    log::init(cli.log_level, cli.log_format);
    match cli::dispatch(cli) {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("smtpwatch: {error:#}");
            cli::Exit::of(&error).into()
        }
    }
}
