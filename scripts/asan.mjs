/**
 * AddressSanitizer and LeakSanitizer over the binding inside Node.js, which itself is not instrumented. `node scripts/asan.mjs`, after a
 * build; arguments are suites, instead of all. Whatever a sanitizer finds in any process fails the run, and so does a sanitizer that does
 * not find the mistakes which are planted.
 */

import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const target = join(root, 'target', 'asan')
const reports = join(target, 'reports')
const { platform } = createRequire(import.meta.url)('../dist/platform.js')

/** Those that use the binding and run no CPython. */
const SUITES = [
  'allocators',
  'arena-allocator',
  'chaos',
  'close',
  'contexts',
  'collector',
  'debug',
  'domain',
  'exhaustion',
  'heap',
  'look',
  'memory',
  'misuse',
  'run',
  'sound/frees',
  'sound/hooks',
  'sound/places',
  'type',
  'view',
  'weakref',
  'workers',
]

/**
 * Titles of tests that cannot hold there: a sanitizer needs terabytes of address space, looks for leaks before a process ends, and takes
 * minutes for millions of blocks.
 */
const LEFT_OUT = ['memory that the operating system refuses is null*', 'a process that ends *', 'more blocks are live at once*']

const host = /^host: (.*)$/m.exec(execFileSync('rustc', ['-vV'], { encoding: 'utf8' }))[1]
const cargo = ['build', '--quiet', '-p', 'obmalloc-node', '--features', 'planted', '--target', host, '--target-dir', target]
const flags = { RUSTC_BOOTSTRAP: '1', RUSTFLAGS: '-Zsanitizer=address' }
if (spawnSync('cargo', cargo, { cwd: root, stdio: 'inherit', env: { ...process.env, ...flags } }).status !== 0) process.exit(1)

const env = {
  ...process.env,
  OBMALLOC_INSTRUMENTED: join(target, host, 'debug', 'libobmalloc_node.so'),
  NODE_OPTIONS: `--require ${join(root, 'scripts', 'binding-asan.cjs')}`,
  // The C compiler's: what Rust brings goes into executables only.
  LD_PRELOAD: execFileSync('cc', ['-print-file-name=libasan.so'], { encoding: 'utf8' }).trim(),
  // Node.js leaks at its exit, so that leaks must not change the exit code.
  ASAN_OPTIONS: [
    'detect_leaks=1:exitcode=0:abort_on_error=1:allocator_may_return_null=1',
    `log_path=${join(reports, 'of')}`,
    "stack_trace_format='    #%n %f %S in module %m'",
  ].join(':'),
}

/** Runs Node.js under the sanitizers; gives its exit code and what they found, without the leaks of memory that others than us took. */
function watch(args, stdio) {
  rmSync(reports, { recursive: true, force: true })
  mkdirSync(reports, { recursive: true })
  const { status } = spawnSync(process.execPath, args, { cwd: root, env, stdio })
  const found = readdirSync(reports)
    .flatMap((name) => readFileSync(join(reports, name), 'utf8').split('\n\n'))
    .filter((part) => {
      const [, taker] = /leak of .*\n(?: +#\d+ .* in module \S*libasan\S*\n)* +#\d+ .* in module (\S+)/.exec(part) ?? []
      if (taker !== undefined) return taker.includes('obmalloc')
      return /ERROR: (?!LeakSanitizer: detected memory leaks\s*$)/.test(part)
    })
  return { status, found }
}

let failed = false
const fail = (text) => {
  failed = true
  process.stderr.write(`asan: ${text}\n`)
}

for (const [mistake, expected] of [/heap-use-after-free/, /Direct leak of 100 byte/].entries()) {
  const plant = `require('./npm/${platform}/obmalloc.${platform}.node').planted(${mistake})`
  const { found } = watch(['-e', plant], 'ignore')
  if (!expected.test(found.join('\n'))) fail(`the planted mistake ${mistake} was not found: ${found.join('\n')}`)
}

const [first, ...rest] = process.argv.slice(2)
const suites = first === undefined ? SUITES : [first, ...rest]
const ava = [
  join(root, 'node_modules', 'ava', 'entrypoints', 'cli.mjs'),
  '--timeout=5m',
  ...LEFT_OUT.map((title) => `--match=!${title}`),
  ...suites.map((suite) => `__test__/${suite}.spec.ts`),
]
/** `programs COUNT [SEED]`: random programs, a hundred operations each, the seeds one after the other. */
const programs = () => {
  const [count = '1000', seed = String(Date.now() % 2 ** 31)] = rest
  process.stderr.write(`${count} programs from seed ${seed} on\n`)
  return ['--import', 'tsx', join(root, '__test__', 'chaos', 'run.ts'), 'many', seed, count, '100']
}
const { status, found } = first === 'programs' ? watch(programs(), ['ignore', 'ignore', 'inherit']) : watch(ava, 'inherit')
if (status !== 0) fail(`the tests ended with exit code ${status}`)
for (const report of found) fail(report)
process.exitCode = failed ? 1 : 0
