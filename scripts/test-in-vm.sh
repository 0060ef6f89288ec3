#!/usr/bin/env bash
# `test-in-vm.sh [TEST-FILTER…]`: the runtime's tests, and then a whole cluster, on Debian's own kernel with cgroup v2
# alone, in a QEMU guest that needs no KVM, no disk and no network. Five to fifteen minutes; not part of `make ci`.
# `test-in-vm.sh --cluster`: only the cluster.
# The kernel's package is fetched and unpacked below target/vm, never installed.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$HOME/.cargo/bin:$HOME/.local/bin:$PATH"
only_cluster=
[ "${1:-}" != --cluster ] || { only_cluster=1; shift; }
scripts/install.sh build kubectl vm
[ "$(dpkg --print-architecture)" = amd64 ] || { echo "error: the guest is for amd64 only" >&2; exit 1; }
vm=$PWD/target/vm
mkdir -p "$vm"
say() { printf '==> %s\n' "$*" >&2; }

# The package that the meta package stands for today.
package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
[ -n "$package" ] || { echo "error: apt knows no linux-image-cloud-amd64; run apt-get update" >&2; exit 1; }
if [ ! -e "$vm/$package/done" ]; then
  say "fetching $package"
  rm -rf "${vm:?}/$package"
  mkdir -p "$vm/$package"
  (cd "$vm/$package" && apt-get download -qq "$package" && dpkg -x ./*.deb . && rm ./*.deb && touch done)
fi
kernel=$(find "$vm/$package/boot" -name 'vmlinuz-*')

tests=
if [ -z "$only_cluster" ]; then
  say "building the tests"
  executables=$(cargo test --locked -p runtime --lib --test native --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | sort -u)
  tests=$(grep '/deps/' <<<"$executables")
  [ "$(wc -l <<<"$tests")" = 2 ] || { echo "error: the tests do not build: cargo test -p runtime --no-run" >&2; exit 1; }
fi
say "building the program"
# With the features of the whole workspace: what `make test` builds, too.
cargo build --locked --quiet --workspace --bin llmagentos

say "packing the guest"
root=$vm/root
rm -rf "$root"
mkdir -p "$root"/{bin,proc,sys,dev,tmp,run,etc,new,t/deps}
cp /bin/busybox "$root/bin/busybox"
# The kernel asks /sbin/modprobe for what it lacks.
ln -s bin "$root/sbin"
/bin/busybox --list | while read -r name; do [ "$name" = busybox ] || ln -s busybox "$root/bin/$name"; done
# What containers and their network need of the kernel; this one has it as modules.
release=$(basename "$vm/$package"/lib/modules/*)
modules=lib/modules/$release
for part in fs/overlayfs net lib drivers/net; do
  mkdir -p "$root/$modules/kernel/$(dirname "$part")"
  cp -r "$vm/$package/$modules/kernel/$part" "$root/$modules/kernel/$part"
done
touch "$root/$modules"/modules.{order,builtin,builtin.modinfo}
/sbin/depmod -b "$root" "$release"
cp target/debug/llmagentos "$(command -v kubectl)" "$root/t/"
cp scripts/cluster-in-vm.sh "$root/t/"
programs=("$root/t/llmagentos")
for test in $tests; do
  name=$(basename "$test")
  cp "$test" "$root/t/deps/${name%-*}"
  programs+=("$root/t/deps/${name%-*}")
  zygote=$(dirname "$(dirname "$test")")/runtime-zygote
done
if [ -n "$tests" ]; then
  cp "$zygote" "$root/t/runtime-zygote"
  programs+=("$root/t/runtime-zygote")
fi
strip --strip-debug "${programs[@]}"
# What they are linked with, where the linker looks for it.
ldd "${programs[@]}" | grep -oE '/[^ ]+\.so[^ ]*' | sort -u | while read -r library; do
  mkdir -p "$root$(dirname "$library")"
  cp -L "$library" "$root$library"
done
printf 'root:x:0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
filter=$(printf '%q ' "$@")
# The first root of a guest cannot be left by pivot_root: the second one is a tmpfs.
cat >"$root/init" <<'INIT'
#!/bin/sh
mount -t tmpfs -o size=90% none /new
for name in bin sbin etc lib lib64 usr t second; do [ -e /$name ] && cp -a /$name /new/; done
mkdir -p /new/proc /new/sys /new/dev /new/tmp /new/run
exec switch_root /new /second
INIT
cat >"$root/second" <<INIT
#!/bin/sh
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts none /dev/pts
mount -t tmpfs none /dev/shm
mount -t tmpfs none /run
mount -t cgroup2 none /sys/fs/cgroup
modprobe overlay
ip link set lo up
hostname guest
echo "VM kernel \$(uname -r), \$(mount | grep -c cgroup2) cgroup2"
cd /tmp
code=0
if [ -z "$only_cluster" ]; then
  /t/deps/runtime --test-threads=1 native::cgroup native::devices native::child native::records || code=1
  /t/deps/native --test-threads=1 $filter || code=1
fi
sh /t/cluster-in-vm.sh || code=1
echo "VM result \$code"
poweroff -f
INIT
chmod +x "$root/init" "$root/second"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$vm/initramfs.gz"
rm -rf "$root"

say "booting"
log=$vm/console.log
timeout 1800 qemu-system-x86_64 -machine q35 -accel tcg,thread=multi -cpu max -smp 2 -m 3072 \
  -nographic -no-reboot -nic none -kernel "$kernel" -initrd "$vm/initramfs.gz" \
  -append "console=ttyS0 quiet panic=-1 cgroup_no_v1=all" </dev/null | tee "$log"
grep -q 'VM result 0' "$log" || { echo "error: the tests did not pass in the guest; see $log" >&2; exit 1; }
