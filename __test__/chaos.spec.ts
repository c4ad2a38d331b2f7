/** Random programs do anything to heaps, from inside callbacks too. A failure is shown with its seed and the shortest program found. */

import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

import test from 'ava'

import type { Release } from 'obmalloc'

import { operationsOf } from './chaos/run.ts'
import { releases } from './tools.ts'

const program = fileURLToPath(new URL('chaos/run.ts', import.meta.url))
/** Fewer under a sanitizer, which `scripts/asan.mjs programs` is for. */
const OPERATIONS = process.env['OBMALLOC_INSTRUMENTED'] === undefined ? 2200 : 1000
const SEED = Number(process.env['OBMALLOC_SEED'] ?? Date.now() % 2 ** 32)

/** Runs a program in a process of its own, because it may crash. Returns what went wrong, or undefined. */
async function run(release: Release, allocator: string, quarantine: number, seeds: number[]): Promise<string | undefined> {
  const args = ['--import', 'tsx', program, release, allocator, String(quarantine), JSON.stringify(seeds)]
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'ignore', 'pipe'] })
  const errors: string[] = []
  child.stderr.setEncoding('utf8').on('data', (text: string) => errors.push(text))
  const ended = await new Promise((done) => child.on('close', (code, signal) => done(code ?? signal)))
  return ended === 0 ? undefined : `ended with ${String(ended)}: ${errors.join('').slice(-2000)}`
}

/** Leaves out what can be left out, in ever smaller pieces, as long as there is time. */
async function shrink(release: Release, allocator: string, quarantine: number, seeds: number[]): Promise<number[]> {
  const end = Date.now() + 300_000
  let left = seeds
  for (let size = Math.ceil(left.length / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    for (let first = 0; first < left.length && Date.now() < end;) {
      const shorter = [...left.slice(0, first), ...left.slice(first + size)]
      if (await run(release, allocator, quarantine, shorter)) left = shorter
      else first += size
    }
  }
  return left
}

for (const [index, release] of releases.entries()) {
  const allocator = (SEED + index) % 2 === 0 ? 'default' : 'debug'
  const quarantine = (SEED + index) % 3 === 0 ? 20_000 : 0
  test(`a heap of ${release} stands whatever its callbacks do`, async (t) => {
    t.timeout(600_000)
    const seeds = operationsOf(SEED, OPERATIONS)
    const wrong = await run(release, allocator, quarantine, seeds)
    if (wrong === undefined) return t.pass()
    t.log(`seed ${SEED}: ${wrong}`)
    t.log(`run.ts ${release} ${allocator} ${quarantine} '${JSON.stringify(await shrink(release, allocator, quarantine, seeds))}'`)
    return t.fail(wrong)
  })
}
