#!/usr/bin/env bash
# What takes longer than CI may: every supported Node.js, ThreadSanitizer, the fuzzer, and many random programs. `scripts/long.sh`, after a build;
# it ends at the first that fails.
set -euo pipefail
cd "$(dirname "$0")/.."

# The whole TypeScript suite, beside the CPythons of the PATH alone.
nodes=$(mktemp -d)
trap 'rm -rf "$nodes"' EXIT
for major in 20 22 24 26; do
  npm install --silent --no-save --prefix "$nodes" "node@$major"
  PATH="$nodes/node_modules/.bin:$PATH" PYENV_ROOT=$nodes npx --no-install ava
done

# What threads share, where the standard library can be built for it.
scripts/tsan.sh

# The fuzzer's own tests, its corpus, and beside it a minute of new programs, from some of the corpus: to load all of it takes longer than that.
cargo test --quiet --manifest-path fuzz/Cargo.toml
BUILD_ONLY=1 fuzz/run
fuzz/run -runs=0 corpus &
replay=$!
seeds=$(printf '%s\n' fuzz/corpus/* | shuf -n 200 | sed 's|^fuzz/||' | paste -sd,)
fuzz/run -max_total_time=60 "-seed_inputs=$seeds" found
wait "$replay"

# Guests in every mood, with the assertions that a release build leaves out; and scripts' allocators through Node.js, under AddressSanitizer and LeakSanitizer.
seed=${OBMALLOC_SEED:-$RANDOM$RANDOM}
echo "from seed $seed"
OBMALLOC_SEED=$seed OBMALLOC_PROGRAMS=100000 cargo test --quiet -p obmalloc --test guest_programs
node scripts/asan.mjs programs 10000 "$seed"
