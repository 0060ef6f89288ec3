#!/usr/bin/env bash
# `bench.sh store|runtime|scheduler|api|cluster|knapsack [JSON-FILE] [DATA-FOLDER]`: one benchmark, its peer beside it in the same run.
# Release builds; the file gets one JSON object a line: name, unit, p10, median, p90, peer, ratio.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$HOME/.cargo/bin:$HOME/.local/bin:$PATH"
root=scripts/as-root.sh
json=()
[ -z "${2:-}" ] || json=(--json "$(realpath -m "$2")")

# Everything that listens does so in a network namespace of the benchmark's own.
in_namespace() {
  "$root" unshare --net -- sh -c '
    ip link set lo up
    ip link add uplink type bridge && ip addr add 192.0.2.2/24 dev uplink && ip link set uplink up
    exec "$@"' sh "$@"
}

example() { # crate, example: the path of its release binary
  cargo build --release --locked --quiet -p "$1" --example "$2" >&2
  echo "$PWD/target/release/examples/$2"
}

case "$1" in
  store) in_namespace "$(example store bench_store)" "${json[@]}" ;;
  runtime) in_namespace "$(example runtime container_start)" "${json[@]}" ;;
  scheduler)
    "$(example scheduler decision_time)" "${json[@]}"
    in_namespace "$(example controlplane bench_scheduling)" "${json[@]}"
    ;;
  api) in_namespace "$(example apiserver bench_creates)" "${json[@]}" ;;
  cluster)
    cargo build --release --locked --quiet -p llmagentos
    in_namespace "$(example llmagentos bench_cluster)" --program "$PWD/target/release/llmagentos" "${json[@]}"
    ;;
  knapsack)
    data=()
    [ -z "${3:-}" ] || data=(--data "$(realpath -m "$3")")
    # One core: what the measures are stated for.
    taskset -c 0 "$(example knapsack bench_knapsack)" "${data[@]}" "${json[@]}"
    ;;
  *)
    echo "unknown benchmark $1; there are store, runtime, scheduler, api, cluster, knapsack" >&2
    exit 2
    ;;
esac
