/** The programs of examples/ and of the README: each runs as it stands, and prints what its comments say. */

import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import test, { type ExecutionContext } from 'ava'

import { findInterpreters } from '../dist/interpreters.js'

import { canRecord } from './tools.ts'

const root = fileURLToPath(new URL('..', import.meta.url))
const example = (name: string): string => join(root, 'examples', name)

/** Runs a TypeScript program from the root; what it printed must be what its comments say. */
function prints(t: ExecutionContext, file: string): void {
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--import', 'tsx', file], { encoding: 'utf8', cwd: root })
  t.is(status, 0, stderr)
  const said = [...readFileSync(file, 'utf8').matchAll(/console\.log\(.*\) \/\/ (.*)/g)].map((line) => line[1])
  t.true(said.length > 0)
  t.deepEqual(stdout.trim().split('\n'), said)
}

for (const name of ['wrapping-allocator.ts', 'bump-allocator.ts', 'pool-allocator.ts', 'pinned-arena.ts'])
  test(`examples/${name} runs as it stands`, (t) => prints(t, example(name)))

const { usable } = findInterpreters([])
const withPython = usable.length > 0 && canRecord ? test : test.skip
const ends = [...new Set([usable[0]?.path, usable.at(-1)?.path])] as string[]

withPython('a random program is exact in the oldest and the newest CPython', (t) => {
  const seed = String(Math.floor(Math.random() * 2 ** 31))
  t.log(`seed ${seed}`)
  const args = ['--import', 'tsx', example('compare-random-program.mts'), seed, ...ends]
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8', cwd: root })
  t.is(status, 0, `seed ${seed}\n${stdout}${stderr}`)
  t.is(stdout.match(/^\d+\.\d+\.\d+ exact \d+ of \d+ addresses$/gm)?.length, ends.length, stdout)
})

test('every example is run', (t) => {
  const text = readFileSync(fileURLToPath(import.meta.url), 'utf8')
  const files = readdirSync(join(root, 'examples')).filter((name) => /\.m?ts$/.test(name))
  t.true(files.length >= 6)
  for (const name of files) t.true(text.includes(`'${name}'`), name)
})

const shown = [...readFileSync(join(root, 'README.md'), 'utf8').matchAll(/```ts\n(.*?)```/gs)].map((block) => block[1]!)

test("the README's TypeScript example runs as it stands, and prints what it says", (t) => {
  const file = join(root, '__test__', 'readme-example.tmp.ts')
  writeFileSync(file, shown[0]!)
  try {
    prints(t, file)
  } finally {
    rmSync(file)
  }
})

test("the specification's example runs as the README shows it", (t) => {
  t.is(shown[1], readFileSync(example('tree-node.ts'), 'utf8').replace(/^\/\*\*.*\n\n/, ''))
  prints(t, example('tree-node.ts'))
})
