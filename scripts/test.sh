#!/usr/bin/env bash
# `make test`: every test of the workspace. Tests that mount, make namespaces and run containers
# need root; without it they are run by sudo.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$HOME/.cargo/bin:$HOME/.local/bin:$PATH"
if [ "$(id -u)" != 0 ]; then
  cargo test --workspace --locked --no-run
  exec scripts/as-root.sh env "HOME=$HOME" cargo test --workspace --locked --no-fail-fast
fi
exec cargo test --workspace --locked --no-fail-fast
