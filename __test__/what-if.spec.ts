/** `obmalloc what-if`: other settings and other allocators, tried on recordings of real CPythons. */

import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'

import { findInterpreters } from '../dist/interpreters.js'
import { platform } from '../dist/platform.js'
import { golden } from '../dist/tools.js'
import { ALLOCATORS, findAllocator, type WhatIf } from '../dist/what-if.js'

const cli = fileURLToPath(new URL('../dist/cli.js', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'obmalloc-what-if-test-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

const temporary = join(folder, 'temporary')
mkdirSync(temporary)

const { usable } = findInterpreters([])
const withPython = usable.length > 0 ? test : test.skip

function obmalloc(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...args], {
    encoding: 'utf8',
    cwd: folder,
    env: { ...process.env, TMPDIR: temporary },
    maxBuffer: 2 ** 27,
  })
  return { status, stdout, stderr }
}

function rows(...args: string[]) {
  const { status, stdout, stderr } = obmalloc('what-if', '--json', ...args)
  if (status !== 0) throw new Error(stderr)
  const answer = JSON.parse(stdout) as WhatIf
  const named = (name: string) => answer.rows.find((row) => row.name.startsWith(name))!
  return { answer, named, stderr }
}

/** A few rows of many stay, spread over all arenas. */
const PINNED = 'rows = [str(n) * 9 for n in range(60000)]\nkept = rows[::1500]\ndel rows'

/** Temporary blocks, and among each hundred of them one that stays. */
const PROGRAM = [
  'kept, rows = [], []',
  'for n in range(200000):',
  '    rows.append(bytes(51))',
  '    if n % 100 == 0:',
  '        kept.append(bytes(52))',
  'del rows',
].join('\n')

for (const [index, interpreter] of usable.entries())
  withPython(
    `the recorded setting gives what was recorded, and blocks apart keep none of the others': ${interpreter.version}`,
    (t) => {
      const trace = join(folder, `${index}.trace`)
      t.is(obmalloc('record', '--python', interpreter.path, '-o', trace, '--', '-c', PROGRAM).status, 0)
      const { stdout } = obmalloc('replay', '--json', '--at', 'end', trace)
      const replayed = JSON.parse(stdout) as { statsNow: string }
      const arenas = Number(/# arenas allocated current +=\s+(\d+)/.exec(replayed.statsNow)![1])
      const isSmall = /^3\.[89]\./.test(interpreter.version)
      const [arena, pool] = isSmall ? ['256K', '4K'] : ['1M', '16K']
      const { answer, named } = rows('--arena', `${arena},2M`, '--pool', pool, '--apart', '<string>:5', trace)
      const recorded = answer.rows[0]!
      t.deepEqual(answer.remarks, [])
      t.is(recorded.held, arenas * (isSmall ? 2 ** 18 : 2 ** 20))
      for (const same of [named(`arenas of ${isSmall ? '256 KiB' : '1 MiB'}`), named('pools of')])
        t.like(same, { held: recorded.held, peakHeld: recorded.peakHeld, maps: recorded.maps, lost: recorded.lost })
      const large = named('arenas of 2 MiB')
      t.is(large.held % 2 ** 21, 0)
      t.true(large.maps! < recorded.maps!)
      const apart = named('<string>:5 apart')
      t.is(apart.kind, 'model')
      t.true(apart.held * 2 < recorded.held && apart.peakHeld >= recorded.peakHeld - 2 ** 20, JSON.stringify([apart, recorded]))
    },
  )

for (const [index, interpreter] of usable.entries())
  withPython(`a trim is foretold from 3.10 on: ${interpreter.version}`, (t) => {
    const trace = join(folder, `trim-${index}.trace`)
    const program = 'rows = [bytes(400) for n in range(30000)]\nkept = rows[::3000]\ndel rows'
    t.is(obmalloc('record', '--python', interpreter.path, '-o', trace, '--', '-c', program).status, 0)
    const { totals } = JSON.parse(obmalloc('why', '--json', trace).stdout) as { totals: { trimmable: number } }
    const { answer, named } = rows('--arena', '2M', trace)
    const recorded = answer.rows[0]!
    const { trimmable } = totals
    if (/^3\.[89]\./.test(interpreter.version)) {
      // A pool is one page, with its header in it.
      t.is(trimmable, 0)
      t.falsy(named('trimmed'))
    } else {
      t.true(trimmable > 4 * 2 ** 20, `${trimmable} bytes`)
      t.like(named('trimmed'), {
        kind: 'model',
        peakHeld: recorded.peakHeld,
        held: recorded.held - trimmable,
        difference: -trimmable,
        lost: recorded.lost! - trimmable,
        setting: 'obmalloc trim -- …',
      })
      t.true(recorded.held - trimmable < recorded.held / 2)
    }
  })

withPython('allocators are measured where there are any, and left out with a word where not', (t) => {
  const trace = join(folder, 'measured.trace')
  t.is(obmalloc('record', '-o', trace, '--', '-c', PROGRAM).status, 0)
  const { answer, named } = rows('--allocator', 'glibc,jemalloc,mimalloc,tcmalloc', trace)
  t.is(named('pymalloc of').kind, 'measured')
  const [full, glibc] = [named('pymalloc of'), named('glibc')]
  // At the peak at least 200,000 blocks of 84 bytes are resident.
  for (const row of [full, glibc]) t.true(row.peakHeld > 200_000 * 84 && row.peakHeld < 2 ** 28, JSON.stringify(row))
  t.true(full.held <= full.peakHeld && glibc.nanoseconds > 1)
  const names = Object.keys(ALLOCATORS) as Array<keyof typeof ALLOCATORS>
  const missing = names.filter((name) => findAllocator(name) === undefined)
  t.deepEqual(
    answer.remarks,
    missing.map((name) => `${name} was not measured: this system has no library of it`),
  )
  t.is(answer.rows.filter(({ kind }) => kind === 'measured').length, 1 + names.length - missing.length)
  t.deepEqual(readdirSync(temporary), [], 'nothing is left behind')
})

test('other rules and sizes are tried on a golden trace, and said in words', (t) => {
  const trace = join(golden(), '3.8.trace')
  const { named } = rows('--at', 'event:60000', '--release', '3.9,3.13', '--threshold', '256', trace)
  t.like(named('rules of 3.9'), { kind: 'exact', setting: 'CPython 3.9' })
  t.is(named('rules of 3.13').held % 2 ** 20, 0)
  t.like(named('small up to 256'), { kind: 'model', setting: 'CPython built with SMALL_REQUEST_THRESHOLD 256' })
  const { status, stdout } = obmalloc('what-if', '--arena', '64K,1M', trace)
  t.is(status, 0)
  t.regex(stdout, /as recorded \(3\.8\) +exact +- .*\narenas of 64 KiB +model +CPython built with ARENA_BITS 16/)
  t.regex(stdout, /\nnext: obmalloc why .*3\.8\.trace\n$/)
})

test('what cannot be tried is told in words', (t) => {
  const trace = join(golden(), '3.13.trace')
  const wrong: [string[], RegExp][] = [
    [['--arena', '3M'], /arena size: expected a power of two from 65536 to 67108864/],
    [['--arena', 'big'], /expected a size like 262144, 256K or 1M, but got big/],
    [['--arena', '1M,'], /expected a list like a,b for --arena, but got "1M,"/],
    [['--pool', '1M'], /pool size: expected a power of two from 4096 to 262144/],
    [['--release', '2.7'], /expected a release \(3\.8, .*\), but got 2\.7/],
    [['--allocator', 'toString'], /expected an allocator \(glibc, jemalloc, mimalloc, tcmalloc\), but got toString/],
    [['--apart', 'x'], /expected a site as FILE:LINE, but got x/],
    [['--apart', 'a.py:1'], /has no stacks: blocks cannot be set apart by line/],
    [['--at', 'mark:x'], /expected a moment of the trace, but it has no mark:x: it has \d+ events and no marks/],
  ]
  for (const [args, expected] of wrong) {
    const { status, stderr } = obmalloc('what-if', ...args, trace)
    t.is(status, 2, stderr)
    t.regex(stderr, expected)
  }
  t.is(obmalloc('what-if', join(folder, 'none')).status, 3)
})

if (process.platform === 'linux') {
  test('a file of calls that cannot be written is an error in words', (t) => {
    const trace = join(golden(), '3.13.trace')
    const script = `const { Trace } = require(${JSON.stringify(fileURLToPath(new URL('../dist/index.js', import.meta.url)))})
      Trace.open(${JSON.stringify(trace)}).then((trace) => trace.whatIf([])).catch((error) => console.log(error.name, error.code, error.message))`
    const { stdout } = spawnSync('bash', ['-c', 'ulimit -f 64; exec "$0" -e "$1"', process.execPath, script], {
      encoding: 'utf8',
      env: { ...process.env, TMPDIR: temporary },
    })
    t.regex(stdout, /^Error undefined the calls cannot be written to a file and read from there: File too large/)
    t.deepEqual(readdirSync(temporary), [], 'nothing is left behind')
  })

  /** The package without its measuring program, made of symbolic links. The options have Node.js take a link's own path. */
  test('without the measuring program, allocators are left out with a word', (t) => {
    const package_ = join(folder, 'package')
    mkdirSync(join(package_, 'npm', platform), { recursive: true })
    const root = fileURLToPath(new URL('..', import.meta.url))
    for (const name of ['dist', 'package.json', 'node_modules', 'schema']) symlinkSync(join(root, name), join(package_, name))
    for (const name of readdirSync(join(root, 'npm', platform)))
      if (name !== 'obmalloc-measure') symlinkSync(join(root, 'npm', platform, name), join(package_, 'npm', platform, name))
    const run = (...args: string[]) =>
      spawnSync(
        process.execPath,
        ['--preserve-symlinks', '--preserve-symlinks-main', join(package_, 'dist', 'cli.js'), ...args],
        { encoding: 'utf8', cwd: folder, env: { ...process.env, TMPDIR: temporary } },
      )
    const { status, stdout, stderr } = run('what-if', '--json', '--allocator', 'glibc', join(golden(), '3.13.trace'))
    t.is(status, 0, stderr)
    const { rows: found, remarks } = JSON.parse(stdout) as WhatIf
    t.deepEqual(
      found.map(({ kind }) => kind).filter((kind) => kind === 'measured'),
      [],
    )
    t.is(remarks.length, 1)
    t.regex(remarks[0]!, /^allocators were not measured: expected obmalloc-measure for \S+ in .*, but it is not there: /)
    if (usable.length === 0) return
    const trace = join(folder, 'unmeasured.trace')
    t.is(obmalloc('record', '-o', trace, '--', '-c', PINNED).status, 0)
    for (const command of ['why', 'report']) {
      const { status, stdout, stderr } = run(command, trace)
      t.is(status, 1, stderr)
      t.regex(stdout, /pin \d+ of \d+ arenas[^]*another arena size/)
      t.notRegex(stdout, /another allocator/)
      t.regex(stderr, /^allocators were not measured: .*\n$/)
    }
    // Nothing can be tried where no file of calls can be made.
    for (const command of ['why', 'report']) {
      const script = 'export TMPDIR=/no/such/folder; exec "$0" "$@"'
      const args = [cli, command, ...(command === 'report' ? ['-f'] : []), trace]
      const { status, stdout, stderr } = spawnSync('bash', ['-c', script, process.execPath, ...args], { encoding: 'utf8' })
      t.is(status, 1, stderr)
      t.regex(stdout, /pin \d+ of \d+ arenas/)
      t.regex(stderr, /^other settings could not be tried: ENOENT.*\n$/)
    }
  })
}
