/** Recordings from TypeScript: record, replay, ask, try, compare, check. */

import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import test from 'ava'
import { check, compare, diff, findInterpreters, PlaceError, record, Trace, TraceError, UsageError } from 'obmalloc'

import { findInterpreters as findSync } from '../dist/interpreters.js'
import { platform } from '../dist/platform.js'
import { golden } from '../dist/tools.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'obmalloc-tracing-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

const { usable } = findSync([])
const withPython = usable.length > 0 ? test : test.skip

const PROGRAM = [
  'import sys',
  'kept = []',
  'for n in range(6):',
  '    rows = [str(i) * 9 for i in range(20000)]',
  '    kept.append(rows[7])',
  '    del rows',
  '    sys.audit("obmalloc.mark", "job")',
].join('\n')

/** Makes a list of 20,000 strings in an interpreter that has an allocator of its own, and another one in the main interpreter. */
const INTERPRETER = [
  'import sys',
  'if sys.version_info >= (3, 13):',
  '    import _interpreters as interpreters',
  'else:',
  '    import _xxsubinterpreters as interpreters',
  'code = "kept = [str(n) * 9 for n in range(20000)]"',
  'number = interpreters.create()',
  'interpreters.run_string(number, code)',
  'sys.audit("obmalloc.mark", "full")',
  'interpreters.destroy(number)',
  'exec(code)',
].join('\n')

const isolating = usable.filter(({ version }) => Number(version.split('.')[1]) >= 12)

for (const { path, version } of isolating)
  test(`${version}: what other interpreters hold is left out, and said to be`, async (t) => {
    const file = join(folder, `interpreters-${version}.trace`)
    await record(['-c', INTERPRETER], { trace: file, python: path, stdout: 'ignore' })
    const trace = await Trace.open(file)
    const [full, end] = [await trace.why({ at: 'mark:full' }), await trace.why()]
    for (const { findings } of [full, end]) {
      const [finding] = findings.filter(({ rule }) => rule === 'interpreters')
      t.is(finding?.text, 'Left out: 1 interpreter with allocators of their own. What they hold is not counted.')
      t.is(finding?.saves, 0)
    }
    // Only the main interpreter's 20,000 strings of at most 94 bytes count, and not the other one's.
    const grown = end.totals.live - full.totals.live
    t.true(grown > 20_000 * 64 && grown < 20_000 * 128, `${full.totals.live} ${end.totals.live}`)
    t.deepEqual([full.verified.matched, end.verified.matched], [full.verified.addresses, end.verified.addresses])
    const single = join(folder, `single-${version}.trace`)
    await record(['-c', 'pass'], { trace: single, python: path, stdout: 'ignore' })
    const { findings } = await (await Trace.open(single)).why()
    t.false(findings.some(({ rule }) => rule === 'interpreters'))
  })

withPython('a recording is read, replayed, asked and tried from TypeScript', async (t) => {
  const path = join(folder, 'jobs.trace')
  const recording = await record(['-c', PROGRAM], { trace: path, stdout: 'ignore', every: 5 })
  t.deepEqual((await findInterpreters()).usable, usable)
  t.like(recording, { trace: path, ended: 0, complete: true, children: [], remarks: [] })
  const trace = await Trace.open(path)
  t.is(trace.header.stacks, 64)

  let events = 0
  const marks: number[] = []
  for await (const event of trace.events()) {
    if (!('note' in event)) events += 1
    else if (event.note === 'mark') marks.push(event.event)
  }
  t.is(marks.length, 6)
  t.true(events > 100_000)
  const notes: string[] = []
  for await (const event of trace.events({ from: marks[0]!, to: marks[0]! })) if ('note' in event) notes.push(event.note)
  t.deepEqual(notes, ['memory', 'mark'], 'a sample is taken at every mark')

  const seen: number[] = []
  const report = await trace.replay({ onProgress: (done) => seen.push(done) })
  t.true(report.exact && report.ended && report.events > events && seen.length > 0)
  const part = await trace.replay({ at: 'mark:job#1' })
  t.true(part.exact && part.stopped)
  t.is(part.events, marks[0]! + 1)
  const other = await trace.replay({
    geometry: { arenaSize: 1 << 21, poolSize: 1 << 14, alignment: 16, smallRequestThreshold: 512 },
  })
  t.false(other.exact)
  t.truthy(other.mismatch)
  await t.throwsAsync(
    trace.replay({ geometry: { arenaSize: 3, poolSize: 1 << 14, alignment: 16, smallRequestThreshold: 512 } }),
    { message: /arena size: expected a power of two/ },
  )

  const why = await trace.why()
  t.is(why.schema, 'obmalloc.why/1')
  t.true(why.sites.some(({ types }) => types?.some(({ name }) => name === 'str')))
  const between = await trace.why({ at: `event:${marks[0]! - 1}` })
  t.true(
    between.sites.every((site) => !('types' in site)),
    'the recorder looks at marks only',
  )
  const untyped = join(folder, 'untyped.trace')
  await record(['-c', 'pass'], { trace: untyped, stdout: 'ignore', types: false })
  const without = await (await Trace.open(untyped)).why()
  t.true(without.sites.length > 0 && without.sites.every((site) => !('types' in site)))
  t.deepEqual(
    why,
    JSON.parse(
      spawnSync(process.execPath, ['dist/cli.js', 'why', '--json', path], { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28 })
        .stdout,
    ),
  )
  const { totals } = why
  t.is(totals.live + totals.freeInPools + totals.freePools + totals.rounding, totals.held)

  const { rows } = await trace.whatIf([{ arena: 1 << 18 }], { at: 'peak' })
  t.deepEqual(
    rows.map(({ kind }) => kind),
    ['exact', 'model'],
  )
  const { sites } = await diff(`${path}@mark:job#1`, `${path}@mark:job`)
  t.true(sites.some(({ grown, stack }) => grown > 0 && stack[0]?.line === 4))
})

withPython('a signal stops what it was given to', async (t) => {
  const path = join(folder, 'long.trace')
  const controller = new AbortController()
  const endless = record(['-c', 'import time\nwhile True: time.sleep(0.01)'], { trace: path, signal: controller.signal })
  const stopped = t.throwsAsync(endless, { any: true, name: 'AbortError' })
  // The time that the interpreter takes to begin does not matter.
  while (!existsSync(path) || statSync(path).size === 0) await setTimeout(20)
  controller.abort()
  await stopped
  await t.throwsAsync(record(['-c', 'pass'], { trace: join(folder, 'none.trace'), signal: AbortSignal.abort() }), {
    any: true,
    name: 'AbortError',
  })
  t.false(readdirSync(folder).includes('none.trace'))
  await t.throwsAsync(check(['-c', 'import time; time.sleep(60)'], { signal: AbortSignal.timeout(500) }), {
    any: true,
    name: 'TimeoutError',
  })
  const trace = await Trace.open(path)
  await t.throwsAsync(trace.why({ signal: AbortSignal.abort() }), { any: true, name: 'AbortError' })
  await t.throwsAsync(trace.whatIf([], { signal: AbortSignal.abort() }), { any: true, name: 'AbortError' })
})

withPython('comparing with a real CPython is one call, and so is checking', async (t) => {
  const { path, version } = usable.at(-1)!
  const [comparison, ...others] = await compare(['-c', 'import json; json.dumps(list(range(1000)))'], { python: [path] })
  t.is(others.length, 0)
  t.like(comparison, { exact: true, ended: 0, interpreter: { path, version } })
  t.is(comparison!.report.matched, comparison!.report.addresses)
  const { findings, processes, ended } = await check(['-c', 'pass'], { python: path, stdout: 'ignore' })
  t.deepEqual([findings, processes.length, ended], [[], 1, 0])
})

test('what cannot be done rejects with an error that says why', async (t) => {
  await t.throwsAsync(Trace.open(join(folder, 'nothing')), { instanceOf: TraceError })
  await t.throwsAsync(record(['-c', 'pass'], { trace: join(folder, 'no', 'where') }), {
    any: true,
    instanceOf: usable.length > 0 ? PlaceError : UsageError,
  })
  const trace = await Trace.open(join(golden(), '3.15.trace'))
  await t.throwsAsync(trace.whatIf([], { allocators: ['toString' as 'glibc'] }), {
    instanceOf: UsageError,
    message: 'expected an allocator (glibc, jemalloc, mimalloc, tcmalloc), but got toString',
  })
  await t.throwsAsync(record([], { trace: join(folder, 'x') }), { instanceOf: UsageError })
  await t.throwsAsync(compare(['-c', 'pass'], { python: ['/bin/ls'] }), {
    instanceOf: UsageError,
    message: /\/bin\/ls cannot be used/,
  })
})

test('an argument of the wrong kind, or outside its range, is told by its name', async (t) => {
  const path = join(golden(), '3.15.trace')
  const trace = await Trace.open(path)
  const sizes = { arenaSize: 2 ** 20, poolSize: 2 ** 14, alignment: 16, smallRequestThreshold: 512 }
  const to = join(folder, 'arguments.trace')
  const events = (options: object) => trace.events(options).next()
  const recorded = (options: object) => record(['-c', 'pass'], { trace: to, stdout: 'ignore', ...options })
  const any = (value: unknown) => value as never
  const kinds: [string, () => Promise<unknown>][] = [
    ['path', () => Trace.open(any(Buffer.from(path)))],
    ['path', () => Trace.open(any(undefined))],
    ['options', () => trace.why(any(null))],
    ['at', () => trace.why({ at: any(null) })],
    ['at', () => trace.replay({ at: any(1) })],
    ['signal', () => trace.replay({ signal: any({}) })],
    ['onProgress', () => trace.whatIf([], { onProgress: any(1) })],
    ['release', () => trace.replay({ release: any(null) })],
    ['geometry.poolSize', () => trace.replay({ geometry: any({ ...sizes, poolSize: undefined }) })],
    ['configurations', () => trace.whatIf(any('x'))],
    ['configurations[0]', () => trace.whatIf([any(null)])],
    ['configurations[1].release', () => trace.whatIf([{}, { release: any(null) }])],
    ['configurations[0].apart', () => trace.whatIf([{ apart: any(1) }])],
    ['allocators', () => trace.whatIf([], { allocators: any('glibc') })],
    ['apart.line', () => trace.whatIf([], { apart: any({ file: 'a.py' }) })],
    ['from', () => events({ from: 1n })],
    ['address', () => events({ address: 1 })],
    ['a', () => diff(any(undefined), path)],
    ['by', () => diff(path, path, { by: any(null) })],
    ['program', () => record(any({}), { trace: to })],
    ['program[1]', () => check(any(['-c', 1]))],
    ['program', () => compare(any('-c'), { python: [] })],
    ['trace', () => record(['-c', 'pass'], any({}))],
    ['python', () => check(['-c', 'pass'], { python: any(['python3']) })],
    ['python', () => compare(['-c', 'pass'], { python: any('python3') })],
    ['stacks', () => recorded({ stacks: '8' })],
    ['types', () => recorded({ types: 'false' })],
    ['force', () => recorded({ force: 1 })],
    ['env.A', () => recorded({ env: { A: 1 } })],
    ['paths', () => findInterpreters(any('python3'))],
  ]
  for (const [name, call] of kinds) {
    const error = await t.throwsAsync(call, { instanceOf: TypeError, code: 'ERR_INVALID_ARG_TYPE' }, name)
    t.is(error?.message.split(':')[0], name)
  }
  const ranges: [string, () => Promise<unknown>][] = [
    ['geometry.arenaSize', () => trace.replay({ geometry: { ...sizes, arenaSize: -1 } })],
    ['configurations[0].arena', () => trace.whatIf([{ arena: 1.5 }])],
    ['configurations[0].pool', () => trace.whatIf([{ pool: NaN }])],
    ['configurations[0].threshold', () => trace.whatIf([{ threshold: 2 ** 64 }])],
    ['from', () => events({ from: -1 })],
    ['size', () => events({ size: NaN })],
    ['by', () => diff(path, path, { by: any('x') })],
    ['stdout', () => check(['-c', 'pass'], { stdout: any('pipe') })],
    ['stacks', () => recorded({ stacks: -1 })],
    ['every', () => recorded({ every: 0.5 })],
  ]
  for (const [name, call] of ranges) {
    const error = await t.throwsAsync(call, { instanceOf: RangeError, code: 'ERR_OUT_OF_RANGE' }, name)
    t.is(error?.message.split(':')[0], name)
  }
  for (const call of [() => trace.why({ at: '' }), () => trace.replay({ at: '' }), () => trace.whatIf([], { at: '' })])
    await t.throwsAsync(call, { instanceOf: RangeError, code: 'ERR_OUT_OF_RANGE' })
  await t.throwsAsync(() => trace.whatIf([{ apart: true }]), { instanceOf: UsageError })
  await t.throwsAsync(() => compare([], { python: [] }), { instanceOf: UsageError })
  t.false(existsSync(to), 'nothing was run')
})

test('progress is told to the end, and a signal is heeded to the end', async (t) => {
  const trace = await Trace.open(join(golden(), '3.15.trace'))
  let last: readonly number[] = []
  await trace.replay({ onProgress: (...told) => (last = told) })
  t.is(last[0], last[1])
  t.true(last[1]! > 0)
  for (const call of [(options: object) => trace.why(options), (options: object) => trace.replay(options)]) {
    const controller = new AbortController()
    const onProgress = (): void => controller.abort(new Error('enough'))
    await t.throwsAsync(() => call({ signal: controller.signal, onProgress }), { message: 'enough' })
  }
  const signal = AbortSignal.abort(new Error('enough'))
  await t.throwsAsync(() => compare(['-c', 'pass'], { python: [], signal }), { message: 'enough' })
})

if (platform === 'linux-x64-gnu')
  test('a measurement takes all that is a signal, and rejects with its reason', async (t) => {
    const trace = await Trace.open(join(golden(), '3.15.trace'))
    const listeners = new Set<unknown>()
    const signal = {
      aborted: false,
      reason: undefined,
      throwIfAborted() {},
      addEventListener: (_: 'abort', listener: () => void) => void listeners.add(listener),
      removeEventListener: (_: 'abort', listener: () => void) => void listeners.delete(listener),
    }
    const { rows } = await trace.whatIf([], { allocators: ['glibc'], signal })
    t.is(rows.filter(({ kind }) => kind === 'measured').length, 2)
    t.is(listeners.size, 0)
    const controller = new AbortController()
    const onProgress = (what: string): void => (what === 'glibc' ? controller.abort(new Error('enough')) : undefined)
    const options = { allocators: ['glibc'] as const, signal: controller.signal, onProgress }
    await t.throwsAsync(() => trace.whatIf([], options), { message: 'enough' })
  })
