/** The command line, as a person or a program uses it: what it prints where, and its exit codes. */

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import test, { type ExecutionContext } from 'ava'

import { findInterpreters } from '../dist/interpreters.js'
import { golden } from '../dist/tools.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'obmalloc-cli-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

const python = findInterpreters([]).usable.at(-1)
const withPython = python ? test : test.skip
const trace = join(golden(), '3.12.trace')

/** Runs the command line without a terminal. */
function obmalloc(args: string[], env: Record<string, string | undefined> = {}) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(root, 'dist', 'cli.js'), ...args], {
    encoding: 'utf8',
    env: { ...process.env, ...env },
    cwd: folder,
    maxBuffer: 1 << 28,
  })
  return { status, stdout, stderr }
}

/** An environment in which no CPython can be found. */
const NOWHERE = { PATH: folder, PYENV_ROOT: folder, UV_PYTHON_INSTALL_DIR: folder, HOME: folder, OBMALLOC_PYTHON: '' }

test('usage errors end with 2 and say what was expected', (t) => {
  for (const args of [
    ['frobnicate'],
    ['compare', '--frob'],
    ['replay'],
    ['record'],
    ['replay', '--operation', 'x', trace],
    ['replay', '--release', '2.7', trace],
  ]) {
    const { status, stdout, stderr } = obmalloc(args)
    t.is(status, 2, args.join(' '))
    t.is(stdout, '')
    t.not(stderr, '')
  }
  t.is(obmalloc(['--help']).status, 0)
  t.is(obmalloc(['--version']).stdout.trim(), JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).version)
})

test('a trace that cannot be read ends with 3', (t) => {
  const bytes = readFileSync(trace)
  const files = {
    empty: Buffer.alloc(0),
    text: Buffer.from('no trace at all, but some text'),
    newer: Buffer.from(bytes),
    damaged: Buffer.from(bytes),
  }
  files.newer[8] = 99
  files.damaged[bytes.length >> 1]! ^= 1
  for (const [name, content] of Object.entries(files)) {
    writeFileSync(join(folder, name), content)
    const { status, stderr } = obmalloc(['replay', join(folder, name)])
    t.is(status, 3, name)
    t.regex(stderr, new RegExp(name))
  }
  t.is(obmalloc(['replay', join(folder, 'missing')]).status, 3)
})

test('replay shows that a golden trace is exact, and as JSON', (t) => {
  const { status, stdout, stderr } = obmalloc(['replay', trace])
  t.is(status, 0)
  t.is(stderr, '')
  t.regex(stdout, /exact/)
  const json = JSON.parse(obmalloc(['replay', '--json', trace]).stdout)
  t.true(json.exact)
  t.is(json.matched, json.addresses)
  t.is(json.release, '3.12')
})

test('a replay on another release ends with 4 and shows the mismatch in full', (t) => {
  const { status, stderr } = obmalloc(['replay', '--release', '3.9', trace])
  t.is(status, 4)
  t.regex(stderr, /operation \d+: Py\w+\(.*\)\n.*\n {2}expected .*\n {2}got /)
})

test('one operation can be looked at alone', (t) => {
  const { status, stdout } = obmalloc(['replay', '--operation', '5000', trace])
  t.is(status, 0)
  t.regex(stdout, /events +5 001/)
  t.regex(stdout, /^Small block threshold = 512, in 32 size classes\.$/m)
})

test('without a CPython compare uses the golden traces and says so', (t) => {
  const { status, stdout, stderr } = obmalloc(['compare', '--all'], NOWHERE)
  t.is(status, 0)
  t.regex(stderr, /no CPython was found that can be used: comparing with the golden traces/)
  t.is(stdout.match(/ equal /g)?.length, 9)
  t.is(obmalloc(['compare', '--', 'script.py'], NOWHERE).status, 2)
})

test('without a CPython compare --gc uses the golden answers too', (t) => {
  const { status, stdout } = obmalloc(['compare', '--gc', '--json'], NOWHERE)
  t.is(status, 0)
  const { collector } = JSON.parse(stdout) as { collector: { from: string; programs: number; divergence: string | null }[] }
  t.true(collector.length >= 9)
  for (const { from, programs, divergence } of collector) {
    t.regex(from, /^3\.\d+\.\d+\.json$/)
    t.is(divergence, null)
    t.is(programs, 12_800)
  }
})

withPython('compare --gc adds a table for the collector', (t) => {
  const { status, stdout, stderr } = obmalloc(['compare', '--gc', '--python', python!.path, '--', '-c', 'pass'])
  t.is(status, 0, stderr)
  t.regex(stdout, /^CPython +object graphs +collector events +logs$/m)
  t.regex(stdout, new RegExp(`^${python!.version} +2\\d 0\\d\\d +\\d \\d{3} \\d{3} +equal +${python!.path}$`, 'm'))
})

test('an interpreter that cannot be used is named with the reason', (t) => {
  const missing = obmalloc(['compare', '--python', join(folder, 'python9')])
  t.is(missing.status, 2)
  t.regex(missing.stderr, /python9 cannot be used: it cannot be started/)
  const shell = obmalloc(['compare', '--python', '/bin/true'])
  t.is(shell.status, 2)
  t.regex(shell.stderr, /\/bin\/true cannot be used: it is no Python/)
  const listed = obmalloc(['compare', '--all'], { ...NOWHERE, OBMALLOC_PYTHON: `/bin/true:${join(folder, 'nothing')}` })
  t.is(listed.status, 0)
  t.regex(listed.stderr, /left out: \/bin\/true: it is no Python/)
  t.regex(listed.stderr, /left out: .*nothing: it cannot be started/)
})

withPython('compare runs a program of ours and gives everything as JSON', (t) => {
  writeFileSync(join(folder, 'ours.py'), 'import sys; print("said", sys.argv[1:]); x = [str(n) for n in range(10000)]')
  const { status, stdout, stderr } = obmalloc([
    'compare',
    '--python',
    python!.path,
    '--json',
    '--',
    join(folder, 'ours.py'),
    '-v',
    'two',
  ])
  t.is(status, 0, stderr)
  t.regex(stderr, /said \['-v', 'two'\]/)
  const { rows } = JSON.parse(stdout)
  t.is(rows.length, 1)
  t.is(rows[0].version, python!.version)
  t.true(rows[0].report.exact)
  t.is(rows[0].timing.length, 3)
})

withPython('the processes that a program starts have rows of their own', (t) => {
  const script =
    'import os, subprocess, sys\nif os.fork() == 0: os._exit(0)\nos.wait()\nsubprocess.run([sys.executable, "-c", "pass"])'
  const { status, stdout, stderr } = obmalloc(['compare', '--python', python!.path, '--', '-c', script])
  t.is(status, 0, stderr)
  t.regex(stdout, /^ \+1 /m)
  t.regex(stdout, /^ \+2 /m)
})

withPython('a program whose calls cannot be seen is not called exact', (t) => {
  const { status, stderr } = obmalloc(['compare', '--python', python!.path, '--', '-c', 'pass'], { PYTHONMALLOC: 'malloc' })
  t.is(status, 4)
  t.regex(stderr, /allocators were replaced/)
})

withPython('record writes a trace and passes on what the program says and how it ends', (t) => {
  const file = join(folder, 'recorded.trace')
  const { status, stdout, stderr } = obmalloc([
    'record',
    '--python',
    python!.path,
    '-o',
    file,
    '--',
    '-c',
    'print("hello"); raise SystemExit(7)',
  ])
  t.is(status, 7)
  t.is(stdout, 'hello\n')
  t.regex(stderr, /recorded CPython/)
  t.is(obmalloc(['replay', file]).status, 0)
})

test('when nobody reads the output any more, the end is quiet', async (t) => {
  const child = spawn(process.execPath, [join(root, 'dist', 'cli.js'), 'compare'], { env: { ...process.env, ...NOWHERE } })
  child.stdout.destroy()
  let said = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text))
  const [code] = (await once(child, 'close')) as [number]
  t.is(code, 141)
  t.notRegex(said, /EPIPE/)
})

test('nothing is coloured without a terminal', (t) => {
  t.false(obmalloc(['replay', trace]).stdout.includes('\u001b'))
})

test('building without a Rust toolchain says what is missing', (t) => {
  const { status, stderr } = spawnSync(process.execPath, [join(root, 'scripts', 'toolchain.mjs')], {
    encoding: 'utf8',
    env: { PATH: folder },
  })
  t.is(status, 1)
  t.regex(stderr, /Rust toolchain/)
})

/** Runs a TypeScript program from the root; what it printed must be what its comments say. */
function prints(t: ExecutionContext, file: string, program: string): void {
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--import', 'tsx', file], {
    encoding: 'utf8',
    cwd: root,
  })
  t.is(status, 0, stderr)
  t.deepEqual(
    stdout.trim().split('\n'),
    [...program.matchAll(/console\.log\(.*\) \/\/ (.*)/g)].map((line) => line[1]),
  )
}

const examples = [...readFileSync(join(root, 'README.md'), 'utf8').matchAll(/```ts\n(.*?)```/gs)].map((block) => block[1]!)

test("the README's TypeScript example runs as it stands, and prints what it says", (t) => {
  const file = join(root, '__test__', 'readme-example.tmp.ts')
  writeFileSync(file, examples[0]!)
  try {
    prints(t, file, examples[0]!)
  } finally {
    rmSync(file)
  }
})

for (const name of ['wrapping', 'bump', 'pool']) {
  test(`the example of a ${name} allocator runs as it stands`, (t) => {
    const file = join(root, 'examples', `${name}-allocator.ts`)
    prints(t, file, readFileSync(file, 'utf8'))
  })
}

test("the specification's example runs as the README shows it", (t) => {
  const file = join(root, 'examples', 'tree-node.ts')
  const program = readFileSync(file, 'utf8')
  t.is(examples[1], program.replace(/^\/\*\*.*\n\n/, ''))
  prints(t, file, program)
})
