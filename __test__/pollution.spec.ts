/** Scripts put getters and values of theirs on every prototype. The package never reads them. */

import { execFile } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { promisify } from 'node:util'

import test from 'ava'

import { buildInjected } from './tools.ts'

interface Found {
  /** How many names the binding touches. */
  readonly ofBinding: number
  /** How many names were tried: those and the face's. */
  readonly names: number
  /** Properties of JavaScript's own that were tried. */
  readonly places: number
  readonly runs: number
  readonly problems: readonly string[]
}

const cwd = new URL('..', import.meta.url)
/** The files of the package that have nothing to do with heaps. */
const tools =
  /^(checking|cli|driving|emnapi|interpreters|loading|platform|proving|recording|replaying|terminal|tools|trace|usage|wasm|index)\.js$/

test('the package keeps nothing, and looks for nothing, where a script can put something', async (t) => {
  t.timeout(600_000)
  const addon = await buildInjected()
  const sources = readdirSync(new URL('dist', cwd)).filter((name) => name.endsWith('.js') && !tools.test(name))
  const files = sources.map((name) => `dist/${name}`)
  const { stdout } = await promisify(execFile)(process.execPath, ['__test__/pollution/child.cjs', addon, ...files], { cwd })
  const { ofBinding, names, places, runs, problems } = JSON.parse(stdout) as Found
  t.true(ofBinding > 15 && names > 400 && places > 500, `${ofBinding} of ${names} names, ${places} places`)
  t.log(`${runs} runs: ${names} names, ${places} properties of JavaScript's own`)
  t.deepEqual(problems, [])
})
