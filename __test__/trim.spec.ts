import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'

import { findInterpreters } from '../dist/interpreters.js'
import { trimVariable, type TrimmedProcess } from '../dist/trimming.js'
import { UsageError } from '../dist/usage.js'

const cli = fileURLToPath(new URL('../dist/cli.js', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'obmalloc-trim-spec-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

const { usable } = findInterpreters([])
const minor = (version: string) => Number(version.split('.')[1])
const able = usable.filter(({ version }) => minor(version) >= 10)
const withPython = able.length > 0 ? test : test.skip
const withBoth = able.length > 0 && able.length < usable.length ? test : test.skip

const FRAGMENTS = 'kept = [(n, n + 1) for n in range(1_000_000)][::1000]\n'

function obmalloc(options: readonly string[], code: string, python = able.at(-1)!.path) {
  return spawnSync(process.execPath, [cli, 'trim', '--python', python, ...options, '--', '-c', code], { encoding: 'utf8' })
}

test('the words of the environment are made of the options', (t) => {
  t.is(trimVariable({}), 'every=30s,above=16777216')
  t.is(trimVariable({ every: '500ms', above: '1MB', idle: true, asked: false, log: true }), 'every=500ms,above=1048576,idle,log')
  for (const words of [{ every: '1h' }, { every: '' }, { every: '-1s' }, { above: '1T' }, { above: 'much' }])
    t.throws(() => trimVariable(words), { instanceOf: UsageError })
})

withPython('memory is given back, and the program has its output and exit code', (t) => {
  for (const { path, version } of able) {
    const code = `${FRAGMENTS}import sys; sys.audit("obmalloc.trim"); print("hello"); sys.exit(3)`
    const { status, stdout, stderr } = obmalloc(['--asked'], code, path)
    t.deepEqual([status, stdout], [3, 'hello\n'])
    t.regex(
      stderr,
      new RegExp(
        `^CPython ${version}: gave back \\d\\d MiB of empty pools and .* of malloc's in 1 trim \\(.*\\); up to .* came back\n$`,
      ),
    )
  }
})

withPython('lines of the log come from the program while it runs', (t) => {
  const { stderr } = obmalloc(['--every', '50ms', '--above', '1M', '--log'], `${FRAGMENTS}import time; time.sleep(1)`)
  t.regex(stderr, /obmalloc trim \[\d+\]: .* empty pools and .* of malloc's given back in .* ms; arenas hold .* MiB\n/)
  t.regex(stderr, /obmalloc trim \[\d+\]: in all /)
})

withPython('the answer is JSON of every process', (t) => {
  const code = `${FRAGMENTS}import os, sys\nif os.fork() == 0: os._exit(0)\nos.wait()\nsys.audit("obmalloc.trim")\nprint("hello")`
  const { status, stdout, stderr } = obmalloc(['--asked', '--json'], code)
  t.is(status, 0)
  t.true(stderr.startsWith('hello\n'))
  const answer = JSON.parse(stdout) as { version: string; ended: number; processes: TrimmedProcess[] }
  t.is(answer.ended, 0)
  t.deepEqual(
    answer.processes.map(({ trims, end, off }) => [trims, end, off]),
    [
      [1, true, null],
      [0, true, null],
    ],
  )
  const [first] = answer.processes
  t.true(first!.poolBytes > 60 << 20 && first!.longestMicros <= first!.micros)
  // To a file, beside the program's own output.
  const file = join(folder, 'answer.json')
  const toFile = obmalloc(['--asked', '-o', file], 'print("hello")')
  t.is(toFile.stdout, 'hello\n')
  t.is((JSON.parse(readFileSync(file, 'utf8')) as typeof answer).processes.length, 1)
  const again = obmalloc(['--asked', '-o', file], `open(${JSON.stringify(join(folder, 'ran'))}, "w")`)
  t.is(again.status, 2)
  t.regex(again.stderr, /answer\.json is there already/)
  t.false(existsSync(join(folder, 'ran')))
  t.is(obmalloc(['--asked', '-f', '-o', file], 'pass').status, 0)
})

withPython('a signal reaches the program, and what was given back until then is told', async (t) => {
  const script = join(folder, 'server.py')
  writeFileSync(script, `${FRAGMENTS}import sys, time\nsys.audit("obmalloc.trim")\nprint("ready", flush=True)\ntime.sleep(60)`)
  const child = spawn(process.execPath, [cli, 'trim', '--python', able.at(-1)!.path, '--', script])
  let stderr = ''
  child.stderr.on('data', (data: Buffer) => (stderr += data.toString()))
  await once(child.stdout, 'data')
  child.kill('SIGTERM')
  const [code] = (await once(child, 'close')) as [number]
  t.is(code, 128 + 15)
  t.regex(stderr, /^the program was ended by SIGTERM\nCPython .*: gave back \d\d MiB of empty pools/)
})

withBoth('where nothing can be given back that is said, and the program runs', (t) => {
  const old = usable.find(({ version }) => minor(version) < 10)!
  const { status, stdout, stderr } = obmalloc([], 'print("hello")', old.path)
  t.deepEqual([status, stdout], [0, 'hello\n'])
  t.regex(stderr, /nothing was given back: it is CPython 3\.[89]\.\d+: expected 3\.10 to 3\.15\n$/)
})

withPython('the library works without this command', (t) => {
  const { status, stdout } = spawnSync(process.execPath, [cli, 'trim', '--path'], { encoding: 'utf8' })
  t.is(status, 0)
  const run = spawnSync(able.at(-1)!.path, ['-c', `${FRAGMENTS}import sys; sys.audit("obmalloc.trim")`], {
    encoding: 'utf8',
    env: { ...process.env, LD_PRELOAD: stdout.trim(), OBMALLOC_TRIM: 'asked,log' },
  })
  t.regex(run.stderr, /in all \d\d\.\d MiB of empty pools/)
})

test('a command line that asks for nothing is refused', (t) => {
  for (const [options, message] of [
    [[], /expected a program to trim/],
    [['--python', '/nowhere', '--', 'x.py'], /nowhere cannot be used/],
  ] as const) {
    const { status, stderr } = spawnSync(process.execPath, [cli, 'trim', ...options], { encoding: 'utf8' })
    t.is(status, 2)
    t.regex(stderr, message)
  }
})
