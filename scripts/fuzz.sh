#!/usr/bin/env bash
# `make fuzz`: builds every fuzz target with the pinned toolchain and runs each for some seconds.
# `fuzz.sh SECONDS [TARGET…]`. See docs/fuzzing.md.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
export PATH="$HOME/.cargo/bin:$PATH"
seconds=${1:?seconds for each target}
shift
host=$(rustc -vV | sed -n 's/^host: //p')
# What cargo-fuzz passes, but for the address sanitizer, which needs a nightly compiler: the pass that counts
# the edges taken is LLVM's own and is there in every rustc.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0"
# Named, so that build scripts and macros are not instrumented.
cargo build --release --locked --target "$host"

[ $# -gt 0 ] || set -- $(sed -n 's/^name = "\(.*\)"$/\1/p' Cargo.toml | tail -n +2)
failed=()
for target; do
  corpus="corpus/$target" artifacts="artifacts/$target/"
  mkdir -p "$corpus" "$artifacts"
  seeds=()
  [ ! -d "seeds/$target" ] || seeds=("seeds/$target")
  log="artifacts/$target.log"
  if "target/$host/release/$target" "$corpus" "${seeds[@]}" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
    -max_len=8192 -artifact_prefix="$artifacts" -verbosity=0 -print_final_stats=1 >"$log" 2>&1; then
    printf '%-24s ok      %s runs\n' "$target" "$(sed -n 's/^stat::number_of_executed_units: //p' "$log")"
  else
    printf '%-24s FAILED  see fuzz/%s\n' "$target" "$log"
    failed+=("$target")
  fi
done
[ ${#failed[@]} -eq 0 ] || { echo "error: findings in: ${failed[*]}; the inputs are in fuzz/artifacts/" >&2; exit 1; }
