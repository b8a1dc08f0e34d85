//! `cargo xtask`: builds the kernel object and packages, and runs tests, the demonstration and benchmarks.

mod bench;
mod build_ebpf;
mod demo;
mod fuzz;
mod host;
mod image;
mod package;
mod test;
mod truth;
#[cfg(test)]
mod walls;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The tasks of this workspace", disable_help_subcommand = true)]
struct CommandLine {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run all test suites: format, lints, unit tests, kernel object, kernel tests, alert rules, lab
    Test(test::Arguments),
    /// Measure performance, compared with other programs; writes the tables of docs/performance.md
    Bench(bench::Arguments),
    /// Play worlds of honest, noisy and hostile sessions to the engine; writes docs/truth.md
    Truth(truth::Arguments),
    /// Build the kernel object that the daemon embeds
    BuildEbpf(build_ebpf::Arguments),
    /// Install the package in a fresh Debian, strip STARTTLS, and wait for the notification
    Acceptance,
    /// Run the lab's attacker on the path with every combination of attack, flaw, hook, family and role
    Adversary,
    /// Build the Debian package
    Package(package::Arguments),
    /// Build the container image
    Image(image::Arguments),
    /// Generate the Kubernetes manifests from the Helm chart
    Manifests,
    /// Show a STARTTLS strip and the alert of the real daemon
    Demo,
    /// Run the fuzz targets one after another
    Fuzz(fuzz::Arguments),
}

fn main() -> anyhow::Result<()> {
    match CommandLine::parse().task {
        Task::Test(arguments) => test::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Truth(arguments) => truth::run(&arguments),
        Task::BuildEbpf(arguments) => build_ebpf::run(&arguments),
        Task::Acceptance => test::acceptance(),
        Task::Adversary => test::adversary(),
        Task::Package(arguments) => package::run(&arguments),
        Task::Image(arguments) => image::run(&arguments),
        Task::Manifests => test::manifests(),
        Task::Demo => demo::run(),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
    }
}
