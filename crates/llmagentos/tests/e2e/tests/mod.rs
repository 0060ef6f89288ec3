//! The tests, by what a user does.

mod apply;
mod bad_input;
mod deploy;
mod disk;
mod disruption;
mod pods;
mod program;
mod registry;
mod restart;
mod services;
mod streams;

use crate::cluster::Cluster;

pub type Test = fn(&Cluster) -> anyhow::Result<()>;

/// Every test by its name.
pub const ALL: &[(&str, Test)] = &[
    (
        "deploy_create_get_describe_delete",
        deploy::create_get_describe_delete,
    ),
    ("deploy_scale", deploy::scale),
    ("deploy_rollout_status_undo_history", deploy::rollout),
    ("deploy_recreate_strategy", deploy::recreate),
    ("deploy_watch_prints_changes", deploy::watch),
    (
        "disruption_budget_holds_evictions_back",
        disruption::budget_holds_evictions_back,
    ),
    ("apply_client_side", apply::client_side),
    ("apply_server_side", apply::server_side),
    ("apply_explain", apply::explain),
    (
        "apply_label_annotate_patch_edit",
        apply::label_annotate_patch_edit,
    ),
    ("streams_logs", streams::logs),
    ("streams_exec", streams::exec),
    ("streams_exec_with_terminal", streams::exec_with_terminal),
    ("streams_attach", streams::attach),
    ("streams_port_forward", streams::port_forward),
    ("streams_cp", streams::cp),
    (
        "services_cluster_ip_and_node_port",
        services::cluster_ip_and_node_port,
    ),
    ("services_host_port", services::host_port),
    ("pods_restart_and_back_off", pods::restart_and_back_off),
    ("pods_init_containers_in_order", pods::init_containers),
    ("pods_volumes", pods::volumes),
    ("pods_environment", pods::environment),
    ("pods_probes", pods::probes),
    ("pods_graceful_end", pods::graceful_end),
    ("pods_limits_and_oom", pods::limits_and_oom),
    ("pods_refusals", pods::refusals),
    ("pods_service_account", pods::service_account),
    (
        "registry_hello_world_through_mirrors",
        registry::hello_world_through_mirrors,
    ),
    ("registry_private_image", registry::private_image),
    (
        "pods_get_what_the_machine_has",
        pods::get_what_the_machine_has,
    ),
    ("bad_input_status_errors", bad_input::status_errors),
    (
        "bad_input_images_and_commands",
        bad_input::images_and_commands,
    ),
    ("bad_input_credentials", bad_input::credentials),
    ("bad_input_raw_bodies", bad_input::raw_bodies),
    ("bad_input_image_archives", bad_input::image_archives),
    ("disk_slow", disk::slow),
    ("disk_full", disk::full),
    ("disk_of_a_newer_version", disk::newer_version),
    (
        "program_status_version_completion_kubeconfig",
        program::status_version_completion_kubeconfig,
    ),
    (
        "program_second_instance_and_port_in_use",
        program::second_instance_and_port_in_use,
    ),
    ("program_images", program::images),
    ("program_explain", program::explain),
    ("program_scheduler_alone", program::scheduler_alone),
    (
        "restart_after_kill_keeps_containers",
        restart::kill_keeps_containers,
    ),
    ("restart_after_kills_under_load", restart::kill_under_load),
];
