//! End to end: the program and the stock kubectl, on real kernel objects.
//!
//! One cluster for all tests (starting one each would take longer than the tests), in a network
//! namespace, directories and a cgroup of its own; each test works in a Kubernetes namespace of
//! its own. At the end `reset` must leave the machine as it was, which is the last test.

mod cluster;
mod http;
mod images;
mod kubectl;
mod listing;
mod load;
mod tests;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};

use cluster::Cluster;

fn main() -> ExitCode {
    if let Some(code) = load::run_if_asked() {
        return code;
    }
    let arguments = Arguments::from_args();
    if arguments.list {
        return libtest_mimic::run(&arguments, trials(&Arc::default())).exit_code();
    }
    let before = listing::Listing::of_machine();
    let cluster = match Cluster::start() {
        Ok(cluster) => Arc::new(Some(cluster)),
        Err(error) => {
            eprintln!("the cluster did not start: {error:#}");
            println!(
                "test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out"
            );
            return ExitCode::FAILURE;
        }
    };
    // The tests that end the server run by themselves, after the others.
    let (last_ones, others): (Vec<_>, Vec<_>) = trials(&cluster)
        .into_iter()
        .partition(|trial| trial.name().starts_with("restart"));
    let conclusion = libtest_mimic::run(&arguments, others);
    let mut one_by_one = arguments.clone();
    one_by_one.test_threads = Some(1);
    let restarts = libtest_mimic::run(&one_by_one, last_ones);
    let cluster = Arc::try_unwrap(cluster)
        .ok()
        .flatten()
        .expect("every test has ended");
    let left = cluster.reset_and_compare(&before);
    let mut last = arguments;
    last.filter = None;
    let reset = Trial::test("reset_leaves_the_machine_as_it_was", move || {
        left.map_err(|error| Failed::from(format!("{error:#}")))
    });
    let reset = libtest_mimic::run(&last, vec![reset]);
    if conclusion.has_failed() || restarts.has_failed() || reset.has_failed() {
        ExitCode::from(101)
    } else {
        ExitCode::SUCCESS
    }
}

fn trials(cluster: &Arc<Option<Cluster>>) -> Vec<Trial> {
    tests::ALL
        .iter()
        .map(|(name, test)| {
            let cluster = Arc::clone(cluster);
            Trial::test(*name, move || {
                let cluster = cluster
                    .as_ref()
                    .as_ref()
                    .expect("the cluster runs while tests do");
                test(cluster)
                    .map_err(|error| Failed::from(format!("{error:#}\n{}", cluster.log_tail())))
            })
        })
        .collect()
}
