/**
 * How many instructions the hot paths take: `node benchmark/instructions.mjs`, with `--json` as JSON. Needs cargo and valgrind.
 *
 * Each case runs in a process of its own under callgrind, with a count of things and with twice the count. The difference between the two, less
 * that of the case without the step in question, is what the step takes. Everything else is the same in all four processes.
 */

import { spawnSync } from 'node:child_process'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')

/** Things in the shorter run of a case. */
const COUNT = 100_000

/** What is counted: its name, the case, and the case without it. */
const ROWS = [
  ['Heap: alloc', 'alloc'],
  ['Heap: free', 'alloc, free', 'alloc'],
  ['Heap: alloc and free in turn, both', 'pairs'],
  ['run: alloc, obj', 'run obj: alloc'],
  ['run: free, obj', 'run obj: alloc, free', 'run obj: alloc'],
  ['run: alloc, raw', 'run raw: alloc'],
  ['run: free, raw', 'run raw: alloc, free', 'run raw: alloc'],
  ['full collection: a live object', 'live, collect', 'live'],
  ['full collection: an object of garbage', 'garbage, collect', 'garbage'],
]

/** Runs a program; gives what it says on stderr. */
function run(program, args, stdio) {
  const { status, error, stderr } = spawnSync(program, args, { cwd: root, encoding: 'utf8', stdio: ['ignore', 'ignore', stdio] })
  if (error) throw new Error(`${program} cannot be started: ${error.message}`)
  if (status !== 0) throw new Error(`${program} ${args.join(' ')} ends with ${status}: ${stderr ?? ''}`)
  return stderr
}

/** Instructions of a case with so many things. */
function instructions(name, count) {
  const example = join(root, 'target', 'release', 'examples', 'instructions')
  const said = run('valgrind', ['--tool=callgrind', '--callgrind-out-file=/dev/null', example, name, String(count)], 'pipe')
  const found = /Collected\s*:\s*(\d+)/.exec(said)
  if (!found) throw new Error(`callgrind has counted nothing: ${said}`)
  return Number(found[1])
}

/** Instructions of a case for each thing. */
function perThing(name) {
  return (instructions(name, 2 * COUNT) - instructions(name, COUNT)) / COUNT
}

run('cargo', ['build', '--release', '--quiet', '--package', 'obmalloc-loops', '--example', 'instructions'], 'inherit')
const found = ROWS.map(([name, withIt, without]) => [name, perThing(withIt) - (without === undefined ? 0 : perThing(without))])
if (process.argv.includes('--json')) console.log(JSON.stringify(Object.fromEntries(found)))
else for (const [name, count] of found) console.log(`${count.toFixed(1).padStart(7)}  ${name}`)
