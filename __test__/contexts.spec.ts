/** The package loaded more than once in a thread, in contexts of their own: what passes between them, and how they end. */

import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { Script, createContext, runInContext, type Context } from 'node:vm'

import test from 'ava'

import * as here from 'obmalloc'

import { some } from './tools.ts'

const require = createRequire(import.meta.url)
const { load } = require('./contexts/load.cjs') as { load(context?: Context): typeof here }

/** What a program in a process of its own prints. */
async function program(name: string, flags: string[], env: NodeJS.ProcessEnv = {}): Promise<string> {
  const file = fileURLToPath(new URL(`contexts/${name}`, import.meta.url))
  const { stdout } = await promisify(execFile)(process.execPath, [...flags, file], { env: { ...process.env, ...env } })
  return stdout
}

test('a program sees the same in every context, with the package of any', (t) => {
  const script = new Script(readFileSync(new URL('contexts/program.js', import.meta.url), 'utf8'))
  const run = (context: Context | undefined, face: typeof here): string[] => {
    const program = (context ? script.runInContext(context) : script.runInThisContext()) as (face: typeof here) => string[]
    return [...program(face)]
  }
  const expected = run(undefined, here)
  t.true(expected.length > 20)
  // These contexts have only JavaScript's own globals: no process and no console.
  const [one, other] = [createContext({}), createContext({})]
  const faces = [here, load(), load(one), load(other)]
  for (const face of faces) for (const context of [undefined, one, other]) t.deepEqual(run(context, face), expected)
})

test('addresses of one context are known in the others', (t) => {
  const faces = [here, load(createContext({})), load(createContext({}))]
  const heaps = faces.map(({ Heap }) => new Heap())
  const blocks = heaps.map((heap) => some(heap.obj.malloc(64)))
  for (const [user, heap] of heaps.entries()) {
    for (const [owner, block] of blocks.entries()) {
      if (user === owner) continue
      const error = t.throws(() => heap.obj.free(block), { code: 'ERR_WRONG_HEAP', any: true })
      t.deepEqual(
        faces.map(({ MemoryFault }) => error instanceof MemoryFault),
        faces.map((_, index) => index === user),
      )
      // The methods of one package are not for the heaps of another.
      t.throws(() => heap.obj.free.call(heaps[owner]!.obj, block), { name: 'TypeError', any: true })
      t.throws(() => void heap.verify.call(heaps[owner]), { name: 'TypeError', any: true })
    }
    heap.verify()
  }
  for (const [index, heap] of heaps.entries()) {
    heap.obj.free(blocks[index]!)
    heap.close()
  }
})

test.serial("an exception of another context's is told of as any other", async (t) => {
  const context = createContext({})
  for (const { Heap } of [here, load(context)]) {
    const heap = new Heap()
    for (const code of ["new TypeError('foreign')", "Object.assign(new Error('foreign'), { name: 'TypeError' })"]) {
      const finalize = runInContext(`() => { throw ${code} }`, context) as () => void
      const warned = once(process, 'warning')
      heap.decref(heap.defineType({ name: 'node', finalize }).alloc())
      const [warning] = (await warned) as [Error & { detail?: string }]
      t.regex(warning.message, /^Exception ignored in finalize of node at 0x[0-9a-f]+: TypeError: foreign$/)
      t.regex(warning.detail ?? '', /evalmachine/)
    }
    heap.close()
  }
})

test.serial('heaps go with their context, and their memory with them', async (t) => {
  t.is(await program('lives.cjs', ['--expose-gc']), 'held true, left 0 contexts, nothing\n')
})

test.serial('the end of a thread takes heaps down in whatever order, also with scripts that have memory of theirs', async (t) => {
  t.timeout(300_000)
  // With this variable the C library fills freed memory with other bytes.
  t.is(await program('ends.cjs', [], { MALLOC_PERTURB_: '165' }), '64 ended well\n')
})
