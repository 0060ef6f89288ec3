//! Validation of probes and lifecycle handlers.

use k8s_openapi::api::core::v1::{
    Container, ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, Probe, SleepAction,
    TCPSocketAction,
};

use super::containers::{Surroundings, validate_port_number, validate_port_number_or_name};
use crate::error::{ErrorList, forbidden, invalid, invalid_each, not_supported, required};
use crate::metadata::not_negative;
use crate::name;
use crate::path::Path;

/// Probes and lifecycle: for containers that keep running.
pub(super) fn validate_running(
    container: &Container,
    around: &Surroundings<'_>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    if let Some(lifecycle) = &container.lifecycle {
        validate_lifecycle(lifecycle, around, &path.child("lifecycle"), errors);
    }
    if let Some(probe) = &container.liveness_probe {
        let path = path.child("livenessProbe");
        validate_probe(probe, &path, errors);
        validate_success_threshold(probe, &path, errors);
    }
    if let Some(probe) = &container.readiness_probe {
        let path = path.child("readinessProbe");
        validate_probe(probe, &path, errors);
        if let Some(period) = probe.termination_grace_period_seconds {
            errors.push(invalid(
                &path.child("terminationGracePeriodSeconds"),
                &period,
                "must not be set for readinessProbes",
            ));
        }
    }
    if let Some(probe) = &container.startup_probe {
        let path = path.child("startupProbe");
        validate_probe(probe, &path, errors);
        validate_success_threshold(probe, &path, errors);
    }
}

fn validate_success_threshold(probe: &Probe, path: &Path<'_>, errors: &mut ErrorList) {
    let threshold = probe.success_threshold.unwrap_or(0);
    if threshold != 1 {
        errors.push(invalid(
            &path.child("successThreshold"),
            &threshold,
            "must be 1",
        ));
    }
}

fn validate_probe(probe: &Probe, path: &Path<'_>, errors: &mut ErrorList) {
    validate_handler(
        [
            probe.exec.as_ref().map(Handler::Exec),
            probe.http_get.as_ref().map(Handler::HttpGet),
            probe.tcp_socket.as_ref().map(Handler::TcpSocket),
            probe.grpc.as_ref().map(|action| Handler::Grpc(action.port)),
        ],
        None,
        path,
        errors,
    );
    for (field, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        not_negative(i64::from(value.unwrap_or(0)), &path.child(field), errors);
    }
    if let Some(period) = probe
        .termination_grace_period_seconds
        .filter(|period| *period <= 0)
    {
        errors.push(invalid(
            &path.child("terminationGracePeriodSeconds"),
            &period,
            "must be greater than 0",
        ));
    }
}

fn validate_lifecycle(
    lifecycle: &Lifecycle,
    around: &Surroundings<'_>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    for (field, handler) in [
        ("postStart", &lifecycle.post_start),
        ("preStop", &lifecycle.pre_stop),
    ] {
        if let Some(LifecycleHandler {
            exec,
            http_get,
            tcp_socket,
            sleep,
        }) = handler
        {
            validate_handler(
                [
                    exec.as_ref().map(Handler::Exec),
                    http_get.as_ref().map(Handler::HttpGet),
                    tcp_socket.as_ref().map(Handler::TcpSocket),
                    sleep.as_ref().map(Handler::Sleep),
                ],
                around.grace_period_seconds,
                &path.child(field),
                errors,
            );
        }
    }
    if let Some(signal) = lifecycle.stop_signal.as_deref() {
        let path = path.child("stopSignal");
        match around.os {
            None => errors.push(forbidden(
                &path,
                "may not be set for containers with empty `spec.os.name`",
            )),
            Some("windows") if !matches!(signal, "SIGKILL" | "SIGTERM") => {
                errors.push(not_supported(&path, signal, &["SIGKILL", "SIGTERM"]));
            }
            Some("linux") if !STOP_SIGNALS.contains(&signal) => {
                errors.push(not_supported(&path, signal, STOP_SIGNALS))
            }
            Some(_) => {}
        }
    }
}

/// Sorted by name, as messages list them.
const STOP_SIGNALS: &[&str] = &[
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGRTMAX",
    "SIGRTMAX-1",
    "SIGRTMAX-10",
    "SIGRTMAX-11",
    "SIGRTMAX-12",
    "SIGRTMAX-13",
    "SIGRTMAX-14",
    "SIGRTMAX-2",
    "SIGRTMAX-3",
    "SIGRTMAX-4",
    "SIGRTMAX-5",
    "SIGRTMAX-6",
    "SIGRTMAX-7",
    "SIGRTMAX-8",
    "SIGRTMAX-9",
    "SIGRTMIN",
    "SIGRTMIN+1",
    "SIGRTMIN+10",
    "SIGRTMIN+11",
    "SIGRTMIN+12",
    "SIGRTMIN+13",
    "SIGRTMIN+14",
    "SIGRTMIN+15",
    "SIGRTMIN+2",
    "SIGRTMIN+3",
    "SIGRTMIN+4",
    "SIGRTMIN+5",
    "SIGRTMIN+6",
    "SIGRTMIN+7",
    "SIGRTMIN+8",
    "SIGRTMIN+9",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];

enum Handler<'a> {
    Exec(&'a ExecAction),
    HttpGet(&'a HTTPGetAction),
    TcpSocket(&'a TCPSocketAction),
    Grpc(i32),
    Sleep(&'a SleepAction),
}

fn validate_handler(
    handlers: [Option<Handler<'_>>; 4],
    grace_period_seconds: Option<i64>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let mut handler_count = 0;
    for handler in handlers.into_iter().flatten() {
        let field = match handler {
            Handler::Exec(_) => "exec",
            Handler::HttpGet(_) => "httpGet",
            Handler::TcpSocket(_) => "tcpSocket",
            Handler::Grpc(_) => "grpc",
            Handler::Sleep(_) => "sleep",
        };
        let path = path.child(field);
        handler_count += 1;
        if handler_count > 1 {
            errors.push(forbidden(&path, "may not specify more than 1 handler type"));
            continue;
        }
        match handler {
            Handler::Exec(action) if action.command.as_ref().is_none_or(Vec::is_empty) => {
                errors.push(required(&path.child("command"), ""));
            }
            Handler::Exec(_) => {}
            Handler::HttpGet(action) => validate_http_get(action, &path, errors),
            Handler::TcpSocket(action) => {
                validate_port_number_or_name(&action.port, &path.child("port"), errors)
            }
            Handler::Grpc(port) => validate_port_number(port, &path.child("port"), errors),
            Handler::Sleep(action) => {
                if let Some(period) = grace_period_seconds
                    && !(0..=period).contains(&action.seconds)
                {
                    let detail = format!(
                        "must be non-negative and less than terminationGracePeriodSeconds ({period})"
                    );
                    errors.push(invalid(&path, &action.seconds, detail));
                }
            }
        }
    }
    if handler_count == 0 {
        errors.push(required(path, "must specify a handler type"));
    }
}

fn validate_http_get(action: &HTTPGetAction, path: &Path<'_>, errors: &mut ErrorList) {
    if action.path.as_deref().unwrap_or("").is_empty() {
        errors.push(required(&path.child("path"), ""));
    }
    validate_port_number_or_name(&action.port, &path.child("port"), errors);
    let scheme = action.scheme.as_deref().unwrap_or("");
    if !matches!(scheme, "HTTP" | "HTTPS") {
        errors.push(not_supported(
            &path.child("scheme"),
            scheme,
            &["HTTP", "HTTPS"],
        ));
    }
    for header in action.http_headers.iter().flatten() {
        invalid_each(
            errors,
            &path.child("httpHeaders"),
            &header.name,
            name::http_header_name(&header.name),
        );
    }
}
