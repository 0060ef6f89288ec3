#!/usr/bin/env bash
# `make up`: from a bare machine to a running, reachable container. Run again, it finds everything
# in place and is done in seconds.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD/scripts/as-root.sh
# Where the caller's shell will look for what this script finds.
callers_kubectl=$(command -v kubectl || true)
export PATH="$HOME/.cargo/bin:$HOME/.local/bin:$PATH"
image=gcr.io/google-samples/hello-app:1.0

step() { printf '\n==> %s\n' "$*"; }

step "1/5 installing what is missing"
scripts/install.sh build kubectl
step "2/5 building the release binary (some minutes the first time)"
cargo build --release --locked -p llmagentos
llmagentos=$PWD/target/release/llmagentos

step "3/5 starting a cluster"
"$root" "$llmagentos" init
config_dir=${LLMAGENTOS_CONFIG_DIR:-/etc/llmagentos}
# The administrator's kubeconfig is root's; this user gets a copy of its own.
kubeconfig=$config_dir/kubeconfig.yaml
if [ ! -r "$kubeconfig" ]; then
  kubeconfig=$HOME/.kube/llmagentos.yaml
  mkdir -p "$HOME/.kube"
  (umask 077; "$root" "$llmagentos" kubeconfig >"$kubeconfig")
fi
export KUBECONFIG=$kubeconfig

step "4/5 deploying hello-world"
if ! kubectl get deployment hello-world >/dev/null 2>&1; then
  if ! "$root" "$llmagentos" image pull --quiet "$image"; then
    image=localhost/hello-app:1.0
    printf 'gcr.io cannot be reached from here; building this project'"'"'s own hello-app and deploying it as %s instead.\n' "$image"
    cargo rustc --release --locked -p hello-app -- -C target-feature=+crt-static
    "$root" "$llmagentos" image build --binary target/release/hello-app --expose 8080 "$image"
  fi
  kubectl create deployment hello-world --image="$image"
else
  printf 'hello-world is already deployed.\n'
fi
if ! kubectl get service hello-world >/dev/null 2>&1; then
  kubectl expose deployment hello-world --type=NodePort --port=8080
fi
kubectl wait --for=condition=Available deployment/hello-world --timeout=120s

step "5/5 reaching it"
port=$(kubectl get service hello-world -o jsonpath='{.spec.ports[0].nodePort}')
address=$(kubectl get nodes -o jsonpath='{.items[0].status.addresses[?(@.type=="InternalIP")].address}')
curl -fsS --retry 20 --retry-delay 0 --retry-all-errors --max-time 10 "http://$address:$port/"
path_line=
[ -n "$callers_kubectl" ] || path_line="  export PATH=$(dirname "$(command -v kubectl)"):\$PATH
"
cat <<EOT

hello-world answers on http://$address:$port/

Go on with:
${path_line}  export KUBECONFIG=$kubeconfig
  kubectl get deployments,pods -o wide
  make down        # removes the cluster and everything it made
EOT
