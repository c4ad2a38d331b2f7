/**
 * The benchmark: `npm run bench -- [--json] [--rounds N] [--python PATH]…`. What it measures and the figures aimed at are in the README
 * beside it. Everything is a ratio of things timed in turn, round by round: progress on stderr, tables (or JSON) on stdout.
 */

import { spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { cpus, tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import { measureCalls } from './calls.mjs'

const require = createRequire(import.meta.url)
const { check } = require('../dist/checking.js')
const { drive } = require('../dist/driving.js')
const { findInterpreters } = require('../dist/interpreters.js')
const { record } = require('../dist/recording.js')
const { releaseOf } = require('../dist/release.js')
const { replay } = require('../dist/replaying.js')
const { columns, say } = require('../dist/terminal.js')
const { golden, workload } = require('../dist/tools.js')
const { readHeader } = require('../dist/trace.js')

const root = join(dirname(fileURLToPath(import.meta.url)), '..')

/** At most so much, where CPython's allocator lies in a shared library (from 3.12 on) and where it lies in the executable. */
const TARGETS = {
  'hot pair': [0.5, 1],
  '10000 mixed, random': [0.5, 0.45],
  '100000 live, random lifetimes': [0.65, 0.8],
  'trace replay': [0.74, 0.9],
  'arena bytes at peak': [1, 1],
  'resident memory at peak': [1.03, 1.03],
  recording: [1.3, 1.3],
  checking: [1.5, 1.5],
}

/** Full collections of a million objects: at most so much of what CPython 3.13 or later takes. The last is the geometric mean. */
const COLLECTIONS = {
  'live, in allocation order': 0.35,
  'live, shuffled references': 0.45,
  'live, random graph': 0.3,
  'one long chain, in order': 0.45,
  'one long chain, shuffled': 0.25,
  'all garbage, in pairs': 0.45,
  'all garbage, in one group': 0.4,
  'geometric mean': 0.38,
}
const OBJECTS = 1_000_000

/** From TypeScript: a single call over the cheapest native one at most, and nanoseconds of an operation of `run` at most. */
const [SINGLE_CALL, BATCHED] = [1.15, 12]

/** The loops, in the order of the table. */
const LOOPS = [
  'hot pair',
  '10000 mixed, in order',
  '10000 mixed, reverse',
  '10000 mixed, random',
  '100000 live, random lifetimes',
]

const { values: options } = parseArgs({
  options: {
    json: { type: 'boolean', default: false },
    rounds: { type: 'string', default: '9' },
    python: { type: 'string', multiple: true, default: [] },
  },
})
const rounds = Number(options.rounds)
if (!Number.isInteger(rounds) || rounds < 1)
  throw new Error(`--rounds: expected a whole number above 0, but got ${options.rounds}`)

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1]

/** Runs something on two sides in turn; gives the medians of both and that of the ratios `here / there`. */
async function inTurn(there, here) {
  const runs = []
  for (let round = 0; round < rounds; round++) {
    // The two sides take turns in going first.
    const first = round % 2 === 0 ? await there() : await here()
    const second = round % 2 === 0 ? await here() : await there()
    runs.push(round % 2 === 0 ? [first, second] : [second, first])
  }
  return [median(runs.map(([theirs]) => theirs)), median(runs.map(([, ours]) => ours)), median(runs.map(([a, b]) => b / a))]
}

/** Milliseconds that the bundled workload takes. */
async function runTime(interpreter) {
  const begin = performance.now()
  const child = spawn(interpreter.path, [workload('mixed')], { stdio: 'ignore' })
  await new Promise((done) => child.on('close', done))
  return performance.now() - begin
}

/** Everything that is measured with one CPython: what → [there, here, ratio]. */
async function measureInterpreter(interpreter, trace) {
  const { release } = interpreter
  const program = { program: [workload('mixed')], trace, stdout: 'ignore' }
  const timeOf = async (run) => {
    const begin = performance.now()
    const { ended } = await run()
    if (ended !== 0) throw new Error(`${interpreter.path} ended with ${ended}`)
    return performance.now() - begin
  }
  const recordTime = () => timeOf(() => record(interpreter, program))
  const checkTime = () => timeOf(() => check(interpreter, program.program, program.stdout))
  const recording = await inTurn(() => runTime(interpreter), recordTime)
  const checking = await inTurn(() => runTime(interpreter), checkTime)
  const report = await replay({ release, segments: [{ path: trace }] })
  if (!report.exact)
    throw new Error(`CPython ${interpreter.version}: a replay came out otherwise than recorded; see obmalloc compare`)
  const loops = await drive(interpreter, 'bench', [release, rounds, [trace], true])
  const rows = {}
  for (const name of LOOPS) rows[name] = loops[name]
  rows['trace replay'] = loops[basename(trace)]
  // CPython counts arenas itself; how large they are was recorded with them.
  const arenas = Number(/# arenas highwater mark +=\s+([\d,]+)/.exec(report.stats[0])[1].replaceAll(',', ''))
  const peak = (here) => drive(interpreter, 'peak', [release, trace, here])
  const { arenaSize } = new (require('../dist/index.js').Heap)({ release }).geometry
  const [, held] = await peak(true)
  rows['arena bytes at peak'] = [arenas * arenaSize, held, held / (arenas * arenaSize)]
  rows['resident memory at peak'] = await inTurn(
    async () => (await peak(false))[0],
    async () => (await peak(true))[0],
  )
  rows['recording'] = recording
  rows['checking'] = checking
  return rows
}

/** What the collector takes, beside that of a CPython 3.13 or later: shape → [nanoseconds an object there, here, ratio]. */
async function measureCollector(interpreter) {
  if (minor(interpreter.version) < 13) return null
  const rows = await drive(interpreter, 'gc_bench', [interpreter.release, OBJECTS, Math.max(3, Math.round(rounds / 2))])
  const ratios = Object.values(rows).map(([, , ratio]) => ratio)
  rows['geometric mean'] = [NaN, NaN, Math.exp(ratios.reduce((sum, ratio) => sum + Math.log(ratio), 0) / ratios.length)]
  return rows
}

/** loop → allocator → [there, here, ratio]; nothing when the other allocators cannot be built. */
function measureAllocators(release, trace) {
  const folder = join(root, 'benchmark', 'allocators')
  const cargo = ['run', '--release', '--quiet', '--target-dir', join(root, 'target', 'allocators')]
  const run = spawnSync('cargo', [...cargo, '--', String(rounds), release, `${releaseOf(readHeader(trace).python)}=${trace}`], {
    cwd: folder,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  if (run.status !== 0) {
    say('the other allocators are left out: they could not be built or run (they need a C and a C++ compiler)')
    return null
  }
  return Object.fromEntries(
    Object.entries(JSON.parse(run.stdout)).map(([name, row]) => [name === basename(trace) ? 'trace replay' : name, row]),
  )
}

const folder = mkdtempSync(join(tmpdir(), 'obmalloc-bench-'))
const interpreters = []
let allocators = null
try {
  const { usable, unusable } = findInterpreters(options.python)
  for (const { path, reason } of options.python.length > 0 ? unusable : []) say(`left out: ${path}: ${reason}`)
  if (usable.length === 0) say('no CPython was found that can be used: there is none to compare with')
  let last = join(golden(), '3.14.trace')
  for (const interpreter of usable) {
    const { version, shared, path } = interpreter
    say(`CPython ${version} (${path})`)
    last = join(folder, `${interpreters.length}.trace`)
    const rows = await measureInterpreter(interpreter, last)
    interpreters.push({ version, shared, path, rows, collector: await measureCollector(interpreter) })
  }
  say('the other allocators: building, then timing')
  allocators = measureAllocators('3.14', last)
} finally {
  rmSync(folder, { recursive: true, force: true })
}
say('calls from TypeScript')
const calls = measureCalls(rounds * 100)

const machine = `${cpus()[0]?.model ?? 'unknown'}, ${cpus().length} processors`
if (options.json) process.stdout.write(`${JSON.stringify({ machine, rounds, interpreters, allocators, calls })}\n`)
else print()

function print() {
  const out = (rows) => process.stdout.write(`${columns(rows).join('\n')}\n\n`)
  process.stdout.write(
    `${machine}, Node.js ${process.version}, ${rounds} rounds; here / there, medians; * is more than aimed at\n\n`,
  )
  if (interpreters.length > 0) {
    const names = Object.keys(interpreters[0].rows)
    const aim = (kind) => (name) => TARGETS[name]?.[kind].toFixed(2) ?? '-'
    out([
      ['here / CPython', 'its allocator', ...names],
      ['at most', 'shared, 3.12 on', ...names.map(aim(0))],
      ['at most', 'executable', ...names.map(aim(1))],
      ...interpreters.map(({ version, shared, rows }) => [
        version,
        shared ? 'shared' : 'executable',
        ...names.map((name) => {
          const aimed = shared && minor(version) < 12 ? undefined : TARGETS[name]?.[shared ? 0 : 1]
          return cell(rows[name][2], aimed)
        }),
      ]),
    ])
    const timed = [...LOOPS, 'trace replay']
    out([
      ['ns a call, here / there', ...timed],
      ...interpreters.map(({ version, shared, rows }) => [
        `${version} ${shared ? 'shared' : 'executable'}`,
        ...timed.map((name) => `${rows[name][1].toFixed(2)} / ${rows[name][0].toFixed(2)}`),
      ]),
    ])
  }
  const collectors = interpreters.filter(({ collector }) => collector)
  if (collectors.length > 0) {
    const shapes = Object.keys(COLLECTIONS)
    out([
      ['full collection, here / CPython', ...shapes],
      ['at most', ...shapes.map((name) => `${COLLECTIONS[name].toFixed(2)} `)],
      ...collectors.map(({ version, collector }) => [
        version,
        ...shapes.map((name) => cell(collector[name][2], COLLECTIONS[name])),
      ]),
      ...collectors.map(({ version, collector }) => [
        `${version}, ns an object`,
        ...shapes.map((name) =>
          name === 'geometric mean' ? '-' : `${collector[name][1].toFixed(1)} / ${collector[name][0].toFixed(1)}`,
        ),
      ]),
    ])
  }
  if (allocators) {
    const others = Object.keys(Object.values(allocators)[0])
    out([
      ['here / other allocators', ...others, ...others.map((name) => `ns ${name}`), 'ns here'],
      ...[...LOOPS, 'trace replay'].map((name) => [
        name,
        ...others.map((other) => allocators[name][other][2].toFixed(2)),
        ...others.map((other) => allocators[name][other][0].toFixed(2)),
        median(others.map((other) => allocators[name][other][1])).toFixed(2),
      ]),
    ])
  }
  out([
    ['from TypeScript', 'ns a call', 'at most', '/ identity(64)', '/ identity(address)', 'at most'],
    ...calls.single.map(({ name, nanoseconds, ratios }) => {
      const aimed = name.startsWith('identity') ? undefined : SINGLE_CALL
      const cells = ratios.map((ratio) => cell(ratio, aimed))
      return [name, `${nanoseconds.toFixed(2)} `, '-', ...cells, aimed?.toFixed(2) ?? '-']
    }),
    ...calls.batched.map(({ name, nanoseconds }) => [name, cell(nanoseconds, BATCHED), BATCHED.toFixed(2), '- ', '- ', '-']),
  ])
}

function minor(version) {
  return Number(version.split('.')[1])
}

function cell(value, aimed) {
  return `${value.toFixed(2)}${aimed !== undefined && value > aimed ? '*' : ' '}`
}
