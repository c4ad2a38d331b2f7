#!/usr/bin/env bash
# Checks that the core, the trace crate and the binding compile for every platform whose standard library is installed, and names the others.
# The code in C that they carry (zstd) is not compiled: that takes a compiler and headers of each platform, which a release's machines have.
set -uo pipefail
cd "$(dirname "$0")/.."

targets=(
  x86_64-unknown-linux-gnu x86_64-unknown-linux-musl aarch64-unknown-linux-gnu
  x86_64-apple-darwin aarch64-apple-darwin x86_64-pc-windows-msvc
  wasm32-unknown-unknown wasm32-wasip1-threads
)
installed=$(rustup target list --installed)
# Stands for the archiver: makes the file that is asked for, with nothing in it.
stubs=$(mktemp -d)
trap 'rm -rf "$stubs"' EXIT
cat >"$stubs/ar" <<'AR'
#!/bin/sh
for argument; do
  case $argument in
  -out:*) : >"${argument#-out:}" ;;
  *.a) : >"$argument" ;;
  esac
done
AR
chmod +x "$stubs/ar"
status=0
checked=0
for target in "${targets[@]}"; do
  if ! grep -qx "$target" <<<"$installed"; then
    echo "$target: not checked, because its standard library is not installed (rustup target add $target)"
    continue
  fi
  packages=(-p obmalloc -p obmalloc-trace -p obmalloc-node)
  # The binding has no traces where there are no files, and is built for one of the two WebAssemblies.
  [[ $target == wasm32-unknown-unknown ]] && packages=(-p obmalloc -p obmalloc-node --no-default-features)
  [[ $target == wasm32-wasip1-threads ]] && packages=(-p obmalloc)
  name=${target//-/_}
  if env "CC_$name=true" "AR_$name=$stubs/ar" cargo check --quiet --target "$target" --target-dir target/platforms "${packages[@]}"; then
    echo "$target: compiles"
    checked=$((checked + 1))
  else
    echo "$target: does not compile"
    status=1
  fi
done
if [ "$checked" -eq 0 ]; then
  echo "expected at least one platform that can be checked, got none" >&2
  status=1
fi
exit "$status"
