/**
 * Records the golden traces anew: one for each release that a CPython on this machine has (the newest of each), with nothing of the machine
 * in their headers; and the golden answers of collectors, one for each version. `node scripts/golden.mjs`, after a build; with `--gc` the
 * answers only.
 */

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'

const require = createRequire(import.meta.url)
const { drive } = require('../dist/driving.js')
const { findInterpreters } = require('../dist/interpreters.js')
const { record } = require('../dist/recording.js')
const { golden, workload } = require('../dist/tools.js')

const folder = mkdtempSync(join(tmpdir(), 'obmalloc-golden-'))
const { usable } = findInterpreters([])
const newest = new Map(usable.map((interpreter) => [interpreter.release, interpreter]))
for (const [release, interpreter] of process.argv.includes('--gc') ? [] : newest) {
  const trace = join(folder, `${release}.trace`)
  const { ended } = await record(interpreter, { program: ['-I', '-S', workload('small')], trace, stdout: 'inherit' })
  if (ended !== 0) throw new Error(`${interpreter.path} ended with ${ended}`)
  const bytes = readFileSync(trace)
  const end = 16 + bytes.readUInt32LE(12)
  // A golden trace does not say which run it is of.
  const { run: _, id: __, ...header } = JSON.parse(bytes.toString('utf8', 16, end))
  const anonymous = Buffer.from(
    JSON.stringify({ ...header, executable: basename(header.executable), argv: ['python3', '-I', '-S', 'small.py'], pid: 1 }),
  )
  const length = Buffer.alloc(4)
  length.writeUInt32LE(anonymous.length)
  writeFileSync(
    join(golden(), `${release}.trace`),
    Buffer.concat([bytes.subarray(0, 12), length, anonymous, bytes.subarray(end)]),
  )
  process.stderr.write(`${release}: CPython ${interpreter.version}\n`)
}
rmSync(folder, { recursive: true })

/** Digests are over so many programs' logs each; the whole logs are of programs with many kinds of events. */
const PLAN = { firstSeed: 0, programs: 64, digests: 200, logs: [134, 192, 641] }
mkdirSync(join(golden(), 'gc'), { recursive: true })
for (const [version, interpreter] of new Map(usable.map((interpreter) => [interpreter.version, interpreter]))) {
  const answers = await drive(interpreter, 'gc_golden', [version, PLAN])
  writeFileSync(join(golden(), 'gc', `${version}.json`), `${JSON.stringify({ version, ...answers }, null, 1)}\n`)
  process.stderr.write(`collector: CPython ${version}\n`)
}
