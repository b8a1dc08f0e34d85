//! `cargo xtask`: builds the kernel object and the package, runs every suite, the demonstration and the benchmarks.

mod bench;
mod build_ebpf;
mod demo;
mod fuzz;
mod host;
mod image;
mod package;
mod test;
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
    /// Run every suite: format, lints, unit tests, kernel object, kernel tests, alert rules, lab
    Test(test::Arguments),
    /// Measure what all of it costs, beside its peers; writes the tables of docs/performance.md
    Bench(bench::Arguments),
    /// Build the kernel object that the daemon embeds
    BuildEbpf(build_ebpf::Arguments),
    /// Install the package in a fresh Debian, play a strip, and wait for the alert in the pager
    Acceptance,
    /// Have the lab's attacker on the path try every combination of attack, flaw, hook, family and role
    Adversary,
    /// Build the Debian package
    Package(package::Arguments),
    /// Build the container image
    Image(image::Arguments),
    /// Make the manifests of Kubernetes from the Helm chart
    Manifests,
    /// Play a STARTTLS strip against the real daemon and show the alert
    Demo,
    /// Run the fuzz targets, one after the other
    Fuzz(fuzz::Arguments),
}

fn main() -> anyhow::Result<()> {
    match CommandLine::parse().task {
        Task::Test(arguments) => test::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
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
