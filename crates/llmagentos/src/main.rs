//! `llmagentos`: the program.
//!
//! Enter at [`cli::Cli`] for what a user can ask, at [`boot`] for how a cluster comes up.
//! The zygote (parent of all containers) is the same executable, and is dispatched first:
//! it must be single-threaded, so nothing that starts a thread may run before it.

mod boot;
mod cli;
mod config;
mod instance;
mod net_adapter;

use std::process::ExitCode;

use clap::Parser;

/// Twice the pods from create to bound that glibc's allocator gives, for 4 MB: tasks free on one thread what another
/// has allocated, and glibc's pools are locks.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.peek().is_some_and(|verb| verb == "zygote") {
        runtime::native::zygote_main(arguments.skip(1));
    }
    match cli::run(cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
