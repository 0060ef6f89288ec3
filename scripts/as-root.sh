#!/usr/bin/env bash
# Runs a command as root: directly, or by sudo.
set -euo pipefail
if [ "$(id -u)" = 0 ]; then exec "$@"; fi
command -v sudo >/dev/null || { echo "error: '$*' needs root, and there is no sudo; run it as root" >&2; exit 1; }
exec sudo --preserve-env=PATH,LLMAGENTOS_CONFIG_DIR,KUBECONFIG "$@"
