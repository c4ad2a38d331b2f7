/** The binding in WebAssembly: everything but views and traces is as with the native one. */

import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'

import { libcOf } from '../dist/platform.js'
import { randomFrom } from './chaos/run.ts'

const cwd = fileURLToPath(new URL('..', import.meta.url))
const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as { version: string }

function run(binding: string | undefined, ...args: string[]) {
  return given('', binding, ...args)
}

/** As `run`, with a text on the standard input. */
function given(input: string, binding: string | undefined, ...args: string[]) {
  const { OBMALLOC_BINDING: _, ...env } = process.env
  if (binding !== undefined) env['OBMALLOC_BINDING'] = binding
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd, env, input, encoding: 'utf8' })
  return { status, stdout, stderr: stderr.slice(0, 1000) }
}

/** What a task of `wasm/same.cjs` says with a binding. */
function said(
  t: { is(a: unknown, b: unknown, why?: string): boolean },
  binding: string,
  ...args: string[]
): Record<string, unknown> {
  const { status, stdout, stderr } = run(binding, '__test__/wasm/same.cjs', ...args)
  t.is(status, 0, stderr)
  return JSON.parse(stdout) as Record<string, unknown>
}

const isBuilt = existsSync(new URL('../dist/obmalloc.wasm', import.meta.url))
const built = isBuilt ? test : test.skip

for (const release of ['3.8', '3.13']) {
  built(`a million requests are placed as the native engine places them: ${release}`, (t) => {
    const native = said(t, 'native', 'requests', release)
    t.true(Number(native['requests']) > 500_000 && Number(native['arenas']) > 10, JSON.stringify(native).slice(0, 200))
    t.deepEqual(said(t, 'wasm', 'requests', release), native)
  })
}
for (const release of ['3.8', '3.11', '3.13', '3.14.0', '3.15']) {
  built(`objects lie, live and are collected alike: ${release}`, (t) => {
    const native = said(t, 'native', 'objects', release)
    t.true(Number(native['made']) > 12_000, JSON.stringify(native))
    t.deepEqual(said(t, 'wasm', 'objects', release), native)
  })
  built(`a mistake is the same error: ${release}`, (t) => {
    t.deepEqual(said(t, 'wasm', 'mistakes', release), said(t, 'native', 'mistakes', release))
  })
}

type Call = readonly [verb: string, heap: number, domain: number, slot: number, value: number | readonly [odd: number]]

/** A random program for `wasm/calls.cjs`. */
function randomCalls(seed: number, count: number): Call[] {
  const next = randomFrom(seed)
  const blocks = 'malloc malloc malloc calloc realloc free free free'.split(' ')
  const objects = 'alloc alloc incref decref decref refcount refer'.split(' ')
  const rare =
    'freeAgain freeInside freeOdd reallocOdd far size set get field collect blocks put putBack nomemory memory verify'.split(' ')
  return Array.from({ length: count }, () => {
    const kind = next(10)
    const verbs = kind < 5 ? blocks : kind < 8 ? objects : rare
    const verb = next(5000) === 0 ? 'close' : verbs[next(verbs.length)]!
    // Objects, and the blocks of each domain, have slots of their own, which others seldom use.
    const [domain, slot, odd] = [next(3), next(10), next(20)]
    const own = next(30) === 0 ? next(4) : verbs === objects || verb === 'field' ? 3 : domain
    return [verb, next(6), domain, 10 * own + slot, odd === 0 ? [next(100)] : odd === 1 ? next(100_000) : next(600)]
  })
}

/** Makes the calls with both bindings. Returns the number of the first call whose results differ. */
function difference(program: readonly Call[], release: string): { at: number; native: string; wasm: string } | null {
  const said = (binding: string): string[] => {
    const { status, stdout, stderr } = given(JSON.stringify(program), binding, '__test__/wasm/calls.cjs', release)
    return [...stdout.split('\n'), `${status} ${stderr}`]
  }
  const [native, wasm] = [said('native'), said('wasm')]
  const at = native.findIndex((line, index) => line !== wasm[index])
  return at < 0 ? null : { at, native: native[at]!, wasm: wasm[at] ?? '' }
}

/** Leaves calls out of a program whose results differ, for as long as they still do. */
function shrunk(program: readonly Call[], release: string): readonly Call[] {
  for (let size = program.length >> 1; size > 0; size >>= 1) {
    for (let begin = 0; begin < program.length;) {
      const rest = [...program.slice(0, begin), ...program.slice(begin + size)]
      if (difference(rest, release) === null) begin += size
      else program = rest
    }
  }
  return program
}

for (const release of ['3.8', '3.14']) {
  built(`random calls, also from inside callbacks, say and throw the same: ${release}`, (t) => {
    // The seeds are fixed. One seed in forty finds what may differ: block sizes of the C library, and faults of memory that it has given twice.
    const seed = 7
    const program = randomCalls(seed, 6000)
    if (difference(program, release) === null) return t.pass()
    const least = shrunk(program, release)
    return t.fail(`seed ${seed}: ${JSON.stringify(difference(least, release))} of\n${JSON.stringify(least)}`)
  })
}

built('a view is refused, with what to use instead', (t) => {
  const program = `const { Heap } = require('.'), { obj } = new Heap(), block = obj.malloc(8)
    obj.write(block, Uint8Array.of(1, 2, 3))
    console.log(obj.read(block, 1, 2).join())
    try { obj.view(block) } catch ({ code, message }) { console.log(code, message) }`
  const { stdout, stderr } = run('wasm', '-e', program)
  t.regex(
    stdout,
    /^2,3\nERR_EXTERNAL_BUFFERS_UNSUPPORTED expected a JavaScript engine .*; use read\(\) and write\(\) instead\n$/,
    stderr,
  )
})

built('traces are refused with one line', (t) => {
  const { status, stdout, stderr } = run('wasm', 'dist/cli.js', 'replay', '__test__/golden/3.12.trace')
  t.is(status, 4)
  t.is(stdout, '')
  t.regex(
    stderr,
    /^obmalloc: expected the native binding for .*, which reads traces, but this is WebAssembly: install obmalloc-.*\n$/,
  )
})

built('--version says which binding it is', (t) => {
  t.deepEqual(run('wasm', 'dist/cli.js', '--version'), {
    status: 0,
    stdout: `${version} (WebAssembly: OBMALLOC_BINDING)\n`,
    stderr: '',
  })
  t.is(run(undefined, 'dist/cli.js', '--version').stdout, `${version}\n`)
})

built('the module is small, also where no wasm-opt made it smaller', (t) => {
  const { size } = statSync(new URL('../dist/obmalloc.wasm', import.meta.url))
  t.true(size < 500_000, `${size} bytes`)
})

test('another word in OBMALLOC_BINDING is refused', (t) => {
  const { status, stderr } = run('other', '-e', "require('.')")
  t.is(status, 1)
  t.regex(stderr, /RangeError: expected OBMALLOC_BINDING to be native or wasm, got other\n/)
})

/** As much of an executable as names its loader. */
function executable(interpreter: string): Buffer {
  const file = Buffer.alloc(64 + 56)
  // One program header, behind the file's own: PT_INTERP, which names bytes behind both.
  file.writeBigUInt64LE(64n, 32)
  file.writeUInt16LE(56, 54)
  file.writeUInt16LE(1, 56)
  file.writeUInt32LE(3, 64)
  file.writeBigUInt64LE(BigInt(file.length), 64 + 8)
  file.writeBigUInt64LE(BigInt(interpreter.length), 64 + 32)
  return Buffer.concat([file, Buffer.from(interpreter)])
}

test('the package is the one for the C library of the executable, whatever else the system has', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'obmalloc-platform-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const chosen = (name: string, bytes: string | Buffer) => {
    writeFileSync(join(folder, name), bytes)
    return libcOf(join(folder, name))
  }
  t.is(chosen('alpine', executable('/lib/ld-musl-x86_64.so.1\0')), '-musl')
  t.is(chosen('arm', executable('/lib/ld-musl-aarch64.so.1\0')), '-musl')
  t.is(chosen('debian', executable('/lib64/ld-linux-x86-64.so.2\0')), '-gnu')
  // If musl's loader is started with a program as its argument, the loader is the executable.
  const loader = executable('')
  loader.writeUInt32LE(1, 64)
  t.is(chosen('ld-musl-x86_64.so.1', loader), '-musl')
  t.is(chosen('script', '#!/bin/sh\n'), '-gnu')
  t.is(chosen('empty', ''), '-gnu')
  t.is(libcOf(join(folder, 'none')), '-gnu')
  const { header } = process.report.getReport() as { header: { glibcVersionRuntime?: string } }
  if (process.platform === 'linux') t.is(libcOf(process.execPath), header.glibcVersionRuntime === undefined ? '-musl' : '-gnu')
})

test('what needs Linux says so elsewhere', (t) => {
  const elsewhere = "Object.defineProperty(process, 'platform', { value: 'darwin' })"
  const program = `${elsewhere}
    const { recorder, checker, driver, measurer } = require('./dist/tools.js')
    for (const tool of [recorder, checker, driver, measurer])
      try { tool() } catch ({ code, message }) { console.log(code, message) }`
  const { stdout, stderr } = run(undefined, '-e', program)
  const line = `ERR_UNSUPPORTED_PLATFORM expected Linux with glibc, on which CPythons can be recorded, checked and trimmed, got darwin-${process.arch}: record there, and read the trace here\n`
  t.is(stdout, line.repeat(4), stderr)
})

built('where there is no native binding the one in WebAssembly is used', (t) => {
  const elsewhere = "Object.defineProperty(process, 'platform', { value: 'sunos' })"
  const program = `${elsewhere}
    const { Heap } = require('.'), { load } = require('./dist/loading.js')
    console.log(new Heap().obj.malloc(64) > 0, load().fallback)
    process.env.OBMALLOC_BINDING = 'native'`
  const { stdout, stderr } = run(undefined, '-e', program)
  t.regex(
    stdout,
    /^true expected the native binding for sunos-.*, but found none: there are packages for linux-x64-gnu, .*; for another platform, build obmalloc from its source, which needs Rust\n$/,
    stderr,
  )
})

for (const [which, before] of [
  ['at first', 0],
  ['once they are compiled', 100_000],
] as const) {
  built(`where the stack is nearly full calls throw before they do anything, ${which}`, (t) => {
    const program = `const { Heap, MemoryFault } = require('.')
      const heap = new Heap(), other = new Heap(), blocks = [], said = new Set()
      const object = heap.defineType({ name: 'node', fields: {} }).alloc()
      let tries = 0
      const call = () => {
        blocks.push(heap.obj.malloc(48), heap.obj.calloc(4, 9))
        blocks.push(heap.obj.realloc(blocks.pop(), 500))
        heap.obj.free(blocks.pop())
        heap.incref(object)
        heap.decref(object)
      }
      for (let n = 0; n < ${before}; n++) {
        call()
        heap.obj.free(blocks.pop())
      }
      const dive = () => {
        try { dive() } catch {}
        if (tries++ < 1500) try { call() } catch (error) { said.add(error.code ?? error.name) }
      }
      dive()
      const count = heap.allocatedBlocks()
      for (const block of blocks) heap.obj.free(block)
      for (const heap of [other, new Heap()]) heap.obj.free(heap.obj.malloc(5))
      heap.verify()
      heap.close()
      console.log(blocks.length > 100, count - blocks.length < 10, [...said].join())`
    const { stdout, stderr } = run('wasm', '-e', program)
    t.regex(stdout, /^true true (RangeError)?\n$/, stderr)
  })
}

built('with many heaps regions shrink, and in the end arenas are taken without one', (t) => {
  const program = `const { Heap } = require('.')
    const heaps = Array.from({ length: 400 }, () => new Heap({ release: '3.8' }))
    const bytes = (index) => Uint8Array.of(index, index >> 8)
    const blocks = heaps.map(({ obj }, index) => {
      const block = obj.malloc(64)
      obj.write(block, bytes(index))
      return block
    })
    // More arenas than the first heap's region has, and more than the last's.
    for (const { obj } of [heaps[0], heaps[399]]) for (let n = 0; n < 40_000; n++) obj.malloc(512)
    for (const heap of [heaps[0], heaps[399]]) heap.verify()
    const kept = blocks.every((block, index) => heaps[index].obj.read(block, 0, 2).join() === bytes(index).join())
    const arenas = [heaps[0], heaps[399]].map((heap) => heap.arenas().length)
    heaps.forEach((heap) => heap.close())
    console.log(new Set(blocks).size, kept, Math.min(...arenas) > 70)`
  const { stdout, stderr } = run('wasm', '-e', program)
  t.is(stdout, '400 true true\n', stderr)
})

built('after a call that was ended in its middle every call says that the module is to be loaded anew', (t) => {
  // A function that the module calls throws. Only so does a call end at a known place.
  const program = `const { Heap, MemoryFault } = require('.')
    const heap = new Heap(), other = new Heap(), { now } = performance
    const said = []
    const attempt = (call) => { try { call(); said.push('done') } catch (error) { said.push(error.code) } }
    performance.now = () => { throw Object.assign(new Error('no'), { code: 'cut' }) }
    attempt(() => heap.gc.collect())
    performance.now = now
    for (const call of [() => heap.obj.malloc(5), () => other.obj.malloc(5), () => new Heap(), () => heap.close()]) attempt(call)
    console.log(said.join())`
  const all = Array.from({ length: 4 }, () => 'ERR_INTERNAL').join()
  const { stdout, stderr } = run('wasm', '-e', program)
  t.is(stdout, `cut,${all}\n`, stderr)
})
