/** What the face says that the binding has, and what the binding has. */

import { readFileSync } from 'node:fs'

import test from 'ava'

import { buildInjected } from './tools.ts'

/** Without what a formatter may add. */
const bare = (text: string): string => text.replaceAll(/\s/g, '').replaceAll(/,(?=[)\]])/g, '')

test('the face knows the functions of heaps as the binding declares them', async (t) => {
  const module = { exports: {} as { bind(): Record<string, unknown>; declarations(): string } }
  process.dlopen(module, await buildInjected())
  const bound = module.exports.bind()
  const source = readFileSync(new URL('../src/native.ts', import.meta.url), 'utf8')
  const known = new Set([...source.matchAll(/readonly \w+: \([^=]*heap: Handle,?\s*\) => .*/g)].map(([line]) => bare(line)))
  const declared = new Set(module.exports.declarations().trim().split('\n').map(bare))
  t.true(declared.size > 60, `${declared.size} functions`)
  t.deepEqual([...known].toSorted(), [...declared].toSorted())

  const inner = [bound['raw'], bound['mem'], bound['obj']].map((calls) => Object.keys(calls as object))
  const there = [...inner.flat(), ...Object.keys(bound)].filter(
    (name) => !['raw', 'mem', 'obj', 'external', 'chosen'].includes(name),
  )
  for (const name of there) t.regex(source, new RegExp(`\\b${name}(\\(|: \\()`), `${name} is nowhere in src/native.ts`)
})
