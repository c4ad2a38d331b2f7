#!/usr/bin/env bash
# Miri over the core's tests, many of which are shorter there: `scripts/miri.sh`, or `scripts/miri.sh --test edges`. It takes a nightly
# toolchain with miri and rust-src. Addresses come back as numbers, so their provenance is exposed: strict provenance is not to be had.
# No isolation, because the heap asks the clock and random tests are seeded by it.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- --lib --tests
MIRIFLAGS="-Zmiri-permissive-provenance -Zmiri-disable-isolation" exec cargo +nightly miri test -p obmalloc "$@"
