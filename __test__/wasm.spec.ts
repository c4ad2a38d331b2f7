/** The binding in WebAssembly: everything but views and traces is as with the native one. */

import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import test from 'ava'

const cwd = fileURLToPath(new URL('..', import.meta.url))
const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as { version: string }

function run(binding: string | undefined, ...args: string[]) {
  const { OBMALLOC_BINDING: _, ...env } = process.env
  if (binding !== undefined) env['OBMALLOC_BINDING'] = binding
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd, env, encoding: 'utf8' })
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

test('another word in OBMALLOC_BINDING is refused', (t) => {
  const { status, stderr } = run('other', '-e', "require('.')")
  t.is(status, 1)
  t.regex(stderr, /RangeError: expected OBMALLOC_BINDING to be native or wasm, got other\n/)
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
