#!/usr/bin/env bash
# Miri over the core's tests; many are shorter there: `scripts/miri.sh` (an hour or longer), or `scripts/miri.sh --test edges`.
# `OBMALLOC_PROGRAMS=40 scripts/miri.sh --test safe` makes more random calls from safe code than the four programs of a whole run.
# It takes a nightly toolchain with miri and rust-src. The lints of strict provenance hold: no pointer is cast from or to a number.
# Addresses come back from JavaScript as numbers, so their provenance is exposed, and Miri is to permit that. No isolation, because the
# heap asks the clock and random tests are seeded by it.
set -euo pipefail
cd "$(dirname "$0")/.."
RUSTFLAGS="-Zcrate-attr=feature(strict_provenance_lints) -Dfuzzy_provenance_casts -Dlossy_provenance_casts" CARGO_TARGET_DIR=target/provenance \
  cargo +nightly check --quiet -p obmalloc -p obmalloc-trace -p obmalloc-node
[ $# -gt 0 ] || set -- --lib --tests
MIRIFLAGS="-Zmiri-permissive-provenance -Zmiri-disable-isolation" exec cargo +nightly miri test -p obmalloc "$@"
