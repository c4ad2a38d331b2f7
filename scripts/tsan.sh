#!/usr/bin/env bash
# ThreadSanitizer over heaps in eight threads, the raw domain that they share, and a heap as the global allocator. A race that is planted
# must be found. It takes a standard library that is built for it, from source; where that cannot be had, this says so and succeeds.
set -euo pipefail
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
library=$(rustc --print sysroot)/lib/rustlib/src/rust/library
# The flags are unstable, the compiler is not.
export RUSTC_BOOTSTRAP=1
[ -d "$library" ] || rustup --quiet component add rust-src 2>/dev/null || true
if ! cargo fetch --quiet --locked --manifest-path "$library/Cargo.toml" --target "$host" 2>/dev/null; then
  echo "no ThreadSanitizer: the source of the standard library cannot be had (rustup component add rust-src)" >&2
  exit
fi

# A broken global allocator gives reports without end.
export RUSTFLAGS=-Zsanitizer=thread CARGO_TARGET_DIR=target/tsan TSAN_OPTIONS=halt_on_error=1
tests=(cargo test --quiet -Zbuild-std --target "$host" -p obmalloc)
"${tests[@]}" --test threads --example global
if found=$("${tests[@]}" --test threads -- --ignored planted_race 2>&1) || [[ $found != *"WARNING: ThreadSanitizer: data race"* ]]; then
  echo "the planted race was not found: $found" >&2
  exit 1
fi
