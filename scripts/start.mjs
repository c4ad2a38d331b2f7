/** The main job: proves that the engine is exact, then asks of a program that keeps little why it holds much, and writes the answer as a page. */

import { spawnSync } from 'node:child_process'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const { findInterpreters } = createRequire(import.meta.url)('../dist/interpreters.js')

/** Runs a command of ours; gives its exit code. */
function obmalloc(...args) {
  const { status } = spawnSync(process.execPath, [join(root, 'dist', 'cli.js'), ...args], {
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  return status ?? 1
}

const compared = obmalloc('compare', '--all', '--gc')
const newest = findInterpreters([]).usable.at(-1)
if (!newest) {
  process.stderr.write('no CPython was found that can be used: nothing is recorded\n')
  process.exit(compared)
}

const trace = join(root, 'fragments.trace')
process.stdout.write(`\nA program that keeps one row in a thousand, workload/fragments.py, in CPython ${newest.version}:\n\n`)
const recorded = obmalloc('record', '--python', newest.path, '-o', trace, '--', join(root, 'workload', 'fragments.py'))
if (recorded !== 0) process.exit(compared || recorded)
// 1 is what is to be shown: there is a finding.
const reported = obmalloc('report', '--force', trace)
process.exit(compared || (reported === 1 ? 0 : reported))
