#!/usr/bin/env bash
# CPython's own tests, with a trim forced every millisecond and the pages of empty pools filled instead of given back; and once more given back.
# What fails without the trimmer, too, does not count. `scripts/trim-suite.sh PYTHON… [-- TEST…]`, after a build; minutes for each CPython.
set -euo pipefail
library=$(node "$(dirname "$0")/../dist/cli.js" trim --path)
pythons=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do pythons+=("$1"); shift; done
tests=("${@:2}")
if [ ${#tests[@]} -eq 0 ]; then
  tests=(test_list test_tuple test_dict test_set test_bytes test_array test_str test_int test_float test_complex test_range
    test_json test_re test_ast test_compile test_generators test_coroutines test_descr test_class test_dataclasses test_enum test_collections
    test_deque test_heapq test_itertools test_functools test_weakref test_weakset test_gc test_finalization test_copy test_pickle test_struct
    test_memoryview test_io test_csv test_sqlite3 test_zlib test_hashlib test_decimal test_fractions test_datetime test_logging test_queue
    test_threading test_thread test_threading_local test_fork1 test_os test_posix test_subprocess test_signal test_atexit test_context
    test_contextlib test_unpack test_xml_etree test_pyexpat test_ctypes test_concurrent_futures test__xxsubinterpreters test_interpreters test_sys
    test_tracemalloc test_traceback test_exceptions test_import test_importlib test_mmap test_select test_socket test_asyncio)
fi
# What failed, a line each: files, as they are listed at the end, and what crashes say.
failing() {
  {
    sed -nE '/^[0-9]+ tests? failed( again)?:$/,/^$/s/^ +//p' "$1" | tr ' ' '\n'
    sed -nE 's/^test (test_[a-z0-9_]+) (failed|crashed).*/\1/p' "$1"
    grep -aoE 'Fatal Python error: [a-z_]+|Segmentation fault' "$1" || true
    grep -aqE '^Result: |^Tests result: ' "$1" || echo "no result"
  } | sed '/^$/d' | sort -u
}
status=0
for python in "${pythons[@]}"; do
  folder=$(mktemp -d)
  known=()
  for name in "${tests[@]}"; do
    "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('test.$name') is None)" && known+=("$name")
  done
  command=("$python" -m test -q -j1 --timeout 600 "${known[@]}")
  (cd "$folder" && "${command[@]}") >"$folder/without" 2>&1 || true
  for options in force=1ms,poison force=3ms; do
    (cd "$folder" && OBMALLOC_TRIM=$options OBMALLOC_TRIM_REPORT=$folder/report LD_PRELOAD=$library "${command[@]}") >"$folder/with" 2>&1 || true
    slices=$(sed -n 's/.*"end":true.*"slices":\([0-9]*\).*/\1/p' "$folder/report" | paste -sd+ | bc)
    rm -f "$folder/report"
    new=$(comm -13 <(failing "$folder/without") <(failing "$folder/with"))
    "$python" -c 'import sys; print(sys.version.split()[0], end=": ")'
    echo "${#known[@]} files, $options, $slices slices; $(failing "$folder/without" | wc -l) lines of failures without, new ones with: ${new:-none}"
    if [ -n "$new" ]; then
      status=1
      cp "$folder/with" "/tmp/trim-suite-${options%%,*}-$$.log"
    fi
  done
  rm -rf "$folder"
done
exit $status
