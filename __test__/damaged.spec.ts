/** Traces that no recorder has written: each ends with an error, and soon. */

import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

import test from 'ava'
import { diff, Trace, TraceError, UsageError } from 'obmalloc'

import { sourceLines } from '../dist/report.js'

const folder = mkdtempSync(join(tmpdir(), 'obmalloc-damaged-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

const golden = readFileSync(fileURLToPath(new URL('golden/3.15.trace', import.meta.url)))
const text = golden.subarray(16, 16 + golden.readUInt32LE(12)).toString()
const header = JSON.parse(text) as object
const blocks = golden.subarray(16 + Buffer.byteLength(text))

/** A trace with this header, and the blocks of the golden one so many times over. */
function made(name: string, head: object, times = 1): string {
  const path = join(folder, name)
  const bytes = Buffer.from(JSON.stringify(head))
  const fixed = Buffer.from(golden.subarray(0, 16))
  fixed.writeUInt32LE(bytes.length, 12)
  writeFileSync(path, Buffer.concat([fixed, bytes, ...Array.from({ length: times }, () => blocks)]))
  return path
}

test('a header in which something is of another kind is damaged', async (t) => {
  const wrong = {
    python: 3,
    argv: [1],
    pid: -1,
    executable: null,
    freeThreaded: 'no',
    stacks: 1025,
    every: '1',
    run: 1,
    id: {},
    failed: 1,
  }
  const parents = [
    1,
    {},
    { path: 1, bytes: 1 },
    { path: 'a', bytes: -1 },
    { path: 'a', bytes: 2 ** 60 },
    { path: 'a', id: 1, bytes: 1 },
  ]
  const heads = [...Object.entries(wrong).map(([name, value]) => ({ [name]: value })), ...parents.map((parent) => ({ parent }))]
  for (const head of heads) {
    const path = made('kind.trace', { ...header, ...head })
    const message = `${path}: the trace's header is cut off or damaged`
    await t.throwsAsync(Trace.open(path), { instanceOf: TraceError, message }, JSON.stringify(head))
  }
  t.truthy(await Trace.open(made('kind.trace', { ...header, stacks: 0, every: 100, failed: 'no room', later: [] })))
})

test('a trace of a CPython that there are no heaps of cannot be replayed', async (t) => {
  for (const python of ['3.7.1', '3.99.0', '', 'x'.repeat(1000)]) {
    const path = made('version.trace', { ...header, python })
    const trace = await Trace.open(path)
    const message = `${path}: expected a trace of CPython 3.8 to 3.15, but it is of ${python}`
    for (const call of [() => trace.why(), () => trace.replay(), () => trace.whatIf([]), () => diff(trace, trace)])
      await t.throwsAsync(call, { instanceOf: TraceError, message })
    t.true((await trace.replay({ release: '3.15' })).exact)
  }
})

test('a trace that comes before itself is damaged', async (t) => {
  const parent = (path: string) => ({ ...header, parent: { path, bytes: 1e6 } })
  const paths = [made('itself.trace', parent('itself.trace')), made('a.trace', parent('b.trace'))]
  made('b.trace', parent('/no/such/folder/a.trace'))
  for (const path of paths)
    await t.throwsAsync((await Trace.open(path)).replay(), { instanceOf: TraceError, message: /comes before itself$/ })
})

test("progress counts the bytes of a forked process's trace and of its parent's", async (t) => {
  const path = made('forking.trace', header)
  const bytes = statSync(path).size
  const child = made('forked.trace', { ...header, parent: { path, bytes } })
  const trace = await Trace.open(child)
  const all = bytes + statSync(child).size
  const totals = new Set<number>()
  const onProgress = (_: number, total: number) => totals.add(total)
  await trace.replay({ onProgress })
  await trace.why({ at: 'event:10', onProgress })
  t.deepEqual([...totals], [all])
})

test('a moment that a trace does not have is the same error everywhere', async (t) => {
  const path = made('moment.trace', header)
  const trace = await Trace.open(path)
  for (const at of ['mark:none', 'event:9999999']) {
    await t.throwsAsync(trace.replay({ at }), { instanceOf: UsageError })
    await t.throwsAsync(trace.why({ at }), { instanceOf: UsageError })
    await t.throwsAsync(trace.whatIf([], { at }), { instanceOf: UsageError })
    await t.throwsAsync(diff(`${path}@${at}`, trace), { instanceOf: UsageError })
  }
  await t.throwsAsync(trace.why({ at: 'never' }), { code: 'ERR_OUT_OF_RANGE' })
})

const cli = fileURLToPath(new URL('../dist/cli.js', import.meta.url))
/** The exit code of a command. */
const statusOf = (...args: string[]) => spawnSync(process.execPath, [cli, ...args], { cwd: folder }).status

test('a trace without an event has no moment, and every command says so', async (t) => {
  const message = 'the trace holds no event: there is nothing to look at'
  const path = made('empty.trace', header, 0)
  const trace = await Trace.open(path)
  const calls = [() => trace.why(), () => trace.whatIf([]), () => trace.replay({ at: 'end' }), () => diff(trace, trace)]
  for (const call of calls) await t.throwsAsync(call, { instanceOf: TraceError, message })
  t.false((await trace.replay()).exact)
  const full = await Trace.open(made('full.trace', { ...header, failed: 'No space left on device' }, 0))
  for (const call of [() => full.why(), () => full.whatIf([])])
    await t.throwsAsync(call, { message: `${message}, because the recorder could not write: No space left on device` })
  const words = ['why', 'top', 'map', 'what-if', 'report', 'replay --at end', 'budget --peak 1M', 'export --to csv']
  for (const [command, ...options] of words.map((line) => line.split(' '))) t.is(statusOf(command!, ...options, path), 3, command)
  t.is(statusOf('diff', path, path), 3)
})

test('looking for a moment ends when it is told to', async (t) => {
  const trace = await Trace.open(made('long.trace', header, 40))
  const attempts = [(options: object) => trace.replay({ at: 'end', ...options }), (options: object) => trace.whatIf([], options)]
  for (const attempt of attempts) {
    const controller = new AbortController()
    let calls = 0
    const onProgress = () => {
      calls += 1
      controller.abort()
    }
    await t.throwsAsync(attempt({ signal: controller.signal, onProgress }), { any: true, name: 'AbortError' })
    t.is(calls, 1)
  }
})

if (process.platform === 'linux') {
  test('what waits for a writer is no trace and no source', async (t) => {
    const path = join(folder, 'fifo')
    t.is(spawnSync('mkfifo', [path]).status, 0)
    await t.throwsAsync(Trace.open(path), { instanceOf: TraceError })
    const child = made('child.trace', { ...header, parent: { path, bytes: 100 } })
    await t.throwsAsync((await Trace.open(child)).replay(), { instanceOf: TraceError })
    const lines = (file: string) => sourceLines([{ file, line: 1 }], Date.now() + 1000, {})
    for (const file of [path, '/dev/zero', '/proc/self/status']) t.deepEqual(lines(file), { found: {}, changed: [] })
    t.truthy(lines(fileURLToPath(import.meta.url)).found)
  })

  test('an iteration that is left in the middle and forgotten gives its file back', async (t) => {
    const path = made('left.trace', header)
    const open = () =>
      readdirSync('/proc/self/fd').filter((fd) => {
        try {
          return readlinkSync(`/proc/self/fd/${fd}`) === path
        } catch {
          return false
        }
      }).length
    const trace = await Trace.open(path)
    await (async () => {
      for (let count = 0; count < 20; count++) await trace.events().next()
    })()
    setFlagsFromString('--expose-gc')
    const gc = runInNewContext('gc') as () => void
    for (let attempt = 0; open() > 0 && attempt < 100; attempt++) {
      gc()
      await setTimeout(10)
    }
    t.is(open(), 0)
  })
}
