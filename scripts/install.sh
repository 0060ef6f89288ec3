#!/usr/bin/env bash
# Installs what is missing, by name: `install.sh build` (compiler, linker, rust), `kubectl`,
# `test` (the real parts that the tests run against), `vm` (a guest to test in), `fuzz`, `firewalls` (for
# disposable machines). Finds everything in place in milliseconds.
set -euo pipefail
cd "$(dirname "$0")/.."
root=scripts/as-root.sh
apt_updated=

say() { printf '==> %s\n' "$*" >&2; }

apt_install() {
  local missing=()
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || { echo "error: these packages are missing and this is no Debian: ${missing[*]}; install them by your system's own tool" >&2; exit 1; }
  if [ -z "$apt_updated" ]; then
    say "apt-get update"
    "$root" apt-get update -qq
    apt_updated=1
  fi
  say "apt-get install ${missing[*]}"
  # A service that a package brings must not start here: policy-rc.d 101 forbids it for this call.
  "$root" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

install_build() {
  apt_install gcc libc6-dev make pkg-config ca-certificates curl git
  if ! command -v cargo >/dev/null && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
    say "installing rust by rustup"
    # The second is where the toolchains come from anyway, and has the same script.
    { curl --proto '=https' --tlsv1.2 -fsS https://sh.rustup.rs || curl --proto '=https' --tlsv1.2 -fsS https://static.rust-lang.org/rustup/rustup-init.sh; } \
      | sh -s -- -y --profile minimal --no-modify-path >/dev/null \
      || { echo "error: rust could not be installed: neither https://sh.rustup.rs nor https://static.rust-lang.org is reachable; install cargo $(grep channel rust-toolchain.toml | cut -d'"' -f2) and run again" >&2; exit 1; }
  fi
}

# The newest stable kubectl; where its site cannot be reached, Debian's package, unpacked into
# ~/.local without touching the system's packages.
install_kubectl() {
  command -v kubectl >/dev/null && return 0
  [ -x "$HOME/.local/bin/kubectl" ] && return 0
  mkdir -p "$HOME/.local/bin"
  local arch version
  arch=$(dpkg --print-architecture)
  say "installing kubectl into ~/.local/bin"
  if version=$(curl -fsS --max-time 10 https://dl.k8s.io/release/stable-1.36.txt 2>/dev/null) \
    && curl -fsSL --max-time 300 -o "$HOME/.local/bin/kubectl.tmp" "https://dl.k8s.io/release/$version/bin/linux/$arch/kubectl"; then
    chmod +x "$HOME/.local/bin/kubectl.tmp"
    mv "$HOME/.local/bin/kubectl.tmp" "$HOME/.local/bin/kubectl"
    return 0
  fi
  say "dl.k8s.io is not reachable; taking Debian's kubectl package"
  local work
  work=$(mktemp -d)
  mkdir -p "$work"/{lists/partial,cache/archives/partial,root}
  # The mirror that this machine's own Debian comes from; a newer suite of it, checked with Debian's keys.
  local mirror
  mirror=$(apt-get indextargets --format '$(SITE)' 'Origin: Debian' 2>/dev/null | grep -v security | head -1)
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-http://deb.debian.org/debian} trixie main" >"$work/sources.list"
  local options=(-o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update -qq
  (cd "$work" && apt-get "${options[@]}" download -qq kubectl/trixie && dpkg -x kubectl_*.deb root)
  cp "$(find "$work/root" -type f -name kubectl | head -1)" "$HOME/.local/bin/kubectl"
  rm -rf "$work"
}

install_test() {
  apt_install iproute2 util-linux nftables busybox-static docker-registry skopeo runc crun etcd-server libseccomp-dev procps
}

install_fuzz() {
  apt_install g++
}

# Real firewalls for `cargo test -p network --test firewalls`. Not part of `test`: on a machine of one's own their
# packages would be enabled, and shut its ports at the next boot.
install_firewalls() {
  apt_install firewalld ufw iptables dbus-daemon
}

# For the guest of scripts/test-in-vm.sh.
install_vm() {
  apt_install qemu-system-x86 cpio kmod busybox-static binutils libseccomp-dev
}

for part in "$@"; do "install_$part"; done
