/**
 * Real CPythons are the judge: whole programs and long random sequences, recorded and replayed, on every CPython found.
 *
 * `OBMALLOC_PROOF_CALLS` is the number of random calls for each CPython, `OBMALLOC_SEED` the first seed.
 */

import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import test from 'ava'
import { Heap } from 'obmalloc'

import { leftOut, problems } from '../dist/commands/replay.js'
import { drive, driverProgram } from '../dist/driving.js'
import { findInterpreters, type Interpreter } from '../dist/interpreters.js'
import { record } from '../dist/recording.js'
import { releaseOf } from '../dist/release.js'
import { replay } from '../dist/replaying.js'
import { golden, workload } from '../dist/tools.js'
import { readHeader, segments } from '../dist/trace.js'

const PROGRAMS = ['mixed', 'recursion', 'threads', 'classes', 'strings', 'fork']
const CALLS = Number(process.env['OBMALLOC_PROOF_CALLS'] ?? 10_000_000)
const FIRST_SEED = Number(process.env['OBMALLOC_SEED'] ?? Date.now() % 1_000_000)
/** Bytes by which arenas lie off a pool boundary; 0 leaves them where the system puts them. */
const OFFSETS = [0, 16, 0x1000, 0x2010, 0x3ff0]
/** Most random calls in one recording, so that a trace stays below a few hundred megabytes. */
const SLICE = 50_000_000

const folder = mkdtempSync(join(tmpdir(), 'obmalloc-proof-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

/** Replays the trace of a run and those of all processes that it started. Returns what is wrong with each, and how many addresses were equal. */
async function judge(paths: string[]): Promise<{ wrong: string[]; matched: number }> {
  let matched = 0
  const wrong: string[] = []
  for (const path of paths) {
    const report = await replay({ release: releaseOf(readHeader(path).python), segments: segments(path) })
    matched += report.matched
    wrong.push(...problems(report))
    if (!report.exact && wrong.length === 0) wrong.push(`${path} is not exact`)
    if (!report.stats && !path.match(/\.\d+$/)) wrong.push(`${path}: the statistics were not recorded`)
  }
  return { wrong, matched }
}

const { usable } = findInterpreters([])

for (const interpreter of usable) {
  const { version, path, release } = interpreter
  test.serial(`requests fail where _testcapi.set_nomemory makes them fail in CPython ${version} (${path})`, async (t) => {
    t.log(`seed ${FIRST_SEED}`)
    const counts = await drive<[requests: number, failures: number] | null>(interpreter, 'nomemory', [
      release,
      FIRST_SEED,
      20_000,
    ])
    if (counts === null) return t.pass('this CPython came without _testcapi')
    const [requests, failures] = counts
    t.is(requests, 400_000)
    return t.true(failures > 50_000, `${failures} failed`)
  })
}

for (const interpreter of usable) {
  const { version, path } = interpreter
  for (const program of PROGRAMS) {
    test.serial(`${program} comes out the same in CPython ${version} (${path})`, async (t) => {
      const trace = join(folder, `${version}-${program}.trace`)
      const { ended, children } = await record(interpreter, { program: [workload(program)], trace, stdout: 'ignore' })
      t.is(ended, 0)
      t.is(children.length, program === 'fork' ? 3 : 0)
      const { wrong, matched } = await judge([trace, ...children])
      t.deepEqual(wrong, [])
      t.true(matched > 50_000)
      clear()
    })
  }
  for (const kind of ['own', 'shared']) {
    test.serial(`interpreters with ${kind} allocators do not disturb the main one in CPython ${version} (${path})`, async (t) => {
      const trace = join(folder, `${version}-${kind}.trace`)
      const { ended } = await record(interpreter, { program: [workload('interpreters'), kind], trace, stdout: 'ignore' })
      t.is(ended, 0)
      const { wrong, matched } = await judge([trace])
      t.deepEqual(wrong, [])
      t.true(matched > 100_000)
      const report = await replay({ release: releaseOf(readHeader(trace).python), segments: segments(trace) })
      const apart = kind === 'own' && Number(version.split('.')[1]) >= 12
      t.is(report.otherInterpreters, apart ? 6 : 0)
      t.is(report.otherCalls > 6 * 20_000, apart)
      t.is(report.blocks === null, apart)
      t.is(leftOut(report) === undefined, !apart)
      clear()
    })
  }
  test.serial(`${CALLS} random calls come out the same in CPython ${version} (${path})`, async (t) => {
    t.timeout(600_000 + CALLS / 100)
    for (let done = 0, round = 0; done < CALLS; round++) {
      // Every offset has its turn, whatever the number of calls.
      const count = Math.min(SLICE, CALLS - done, Math.max(1000, Math.ceil(CALLS / OFFSETS.length)))
      const [seed, offset] = [FIRST_SEED + round, OFFSETS[round % OFFSETS.length]!]
      t.log(`seed ${seed}, ${count} calls, arenas off by ${offset}`)
      await randomCalls(interpreter, seed, count, offset, (wrong) => t.deepEqual(wrong, [], `seed ${seed}`))
      done += count
    }
  })
}

for (const interpreter of usable) {
  const { version, path, release } = interpreter
  test.serial(`the driver tells the statistics of CPython ${version} (${path}), which add up`, async (t) => {
    const text = await drive<string>(interpreter, 'stats', [])
    const own = new Heap({ release }).debugMallocStats()
    // The same lines, apart from numbers and size classes in use; type free lists come after.
    const shape = (lines: string) =>
      lines
        .replace(/^ *\d+ +\d+ +\d+ +\d+ +\d+\n/gm, '')
        .replace(/ *= *[\d,]+\n/g, ' =\n')
        .replace(/\d+/g, '0')
    t.true(shape(text).startsWith(shape(own)), text)
    const number = (name: RegExp) => Number(name.exec(text)![1]!.replaceAll(',', ''))
    t.is(number(/bytes\/arena +=\s*([\d,]+)/), number(/\nTotal +=\s*([\d,]+)/))
  })
}

async function randomCalls(
  interpreter: Interpreter,
  seed: number,
  count: number,
  offset: number,
  check: (wrong: string[]) => void,
) {
  const trace = join(folder, `${interpreter.version}-${seed}.trace`)
  const env = { OBMALLOC_TRACE_ARENA_OFFSET: String(offset) }
  const { ended } = await record(interpreter, { program: driverProgram('random', [seed, count]), trace, stdout: 'ignore', env })
  const { wrong, matched } = await judge([trace])
  if (ended !== 0) wrong.push(`the driver ended with ${ended}`)
  if (matched < count / 4) wrong.push(`only ${matched} addresses were compared`)
  check(wrong)
  clear()
}

function clear(): void {
  for (const file of readdirSync(folder)) rmSync(join(folder, file))
}

for (const file of readdirSync(golden()).filter((file) => file.endsWith('.trace'))) {
  test.serial(`the golden trace ${file} comes out the same`, async (t) => {
    const { wrong, matched } = await judge([join(golden(), file)])
    t.deepEqual(wrong, [])
    t.true(matched > 30_000)
  })
}
