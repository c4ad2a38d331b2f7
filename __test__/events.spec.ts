/** `obmalloc events`: a trace's events as they are shown, with the stacks that requests were made under. */

import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'

import { findInterpreters } from '../dist/interpreters.js'
import { golden } from '../dist/tools.js'

const cli = fileURLToPath(new URL('../dist/cli.js', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'obmalloc-events-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

const { usable } = findInterpreters([])
const withPython = usable.length > 0 ? test : test.skip

function obmalloc(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...args], {
    encoding: 'utf8',
    cwd: folder,
    maxBuffer: 1 << 28,
  })
  return { status, stdout, stderr }
}

interface Shown {
  readonly call: string
  readonly domain: string
  readonly count?: number
  readonly size: number
  readonly address: string
  readonly stack: readonly { readonly file: string; readonly line: number; readonly function: string }[]
}

function shown(...args: string[]): Shown[] {
  const { status, stdout, stderr } = obmalloc('events', '--json', ...args)
  if (status !== 0) throw new Error(stderr)
  return stdout
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line) as Shown)
}

const PROGRAM = `class Row:
    def __init__(self):
        self.data = bytes(1301)

def load():
    rows = []
    for _ in range(3):
        rows.append(Row())
    return rows

kept = load()
`
/** What CPython requests for a bytes object of so many bytes. */
const SIZE = 1301 + 33

/** What the program asked for: pymalloc passes each of these on to the raw domain, which is another event. */
function requestsIn(trace: string): Shown[] {
  return shown('--size', String(SIZE), '--site', 'rows.py:3', trace).filter(({ domain }) => domain === 'obj')
}

withPython('a request is shown with its stack, in every release', (t) => {
  const program = join(folder, 'rows.py')
  writeFileSync(program, PROGRAM)
  for (const { path, version } of usable) {
    const trace = join(folder, 'rows.trace')
    t.is(obmalloc('record', '--python', path, '-o', trace, '--', program).status, 0, version)
    const requests = requestsIn(trace)
    t.is(requests.length, 3, version)
    const { address, stack } = requests[0]!
    const qualified = Number(version.split('.')[1]) >= 11 ? 'Row.__init__' : '__init__'
    t.deepEqual(
      stack.map(({ file, line, function: name }) => [file, line, name]),
      [
        [program, 3, qualified],
        [program, 8, 'load'],
        [program, 11, '<module>'],
      ],
      version,
    )
    t.is(shown('--site', 'rows.py:3', '--size', String(SIZE), trace).length, 6)
    t.is(shown('--site', 'rows.py:4', trace).length, 0)
    // Each free of the address is of the last block that was given there.
    const [there, sizes] = [shown('--address', address, trace).filter(({ domain }) => domain === 'obj'), [] as number[]]
    for (const { call, count, size } of there) {
      if (call === 'free') t.is(size, sizes.pop()!, version)
      else sizes.push(size * (count ?? 1))
    }
    t.true(
      there.some(({ call, size }) => call === 'free' && size === SIZE),
      version,
    )
    t.regex(
      obmalloc('events', '--size', String(SIZE), trace).stdout,
      new RegExp(
        `  [cm]alloc  obj  (1x)?${SIZE}  ${address}  ${qualified} \\(.*rows.py:3\\) < load \\(.*:8\\) < <module> \\(.*:11\\)\n`,
      ),
    )
    const record = (frames: number) =>
      obmalloc('record', '--stacks', String(frames), '--python', path, '-o', trace, '--', program)
    t.is(record(1).status, 0, version)
    t.deepEqual(
      requestsIn(trace).map(({ stack }) => stack.map(({ line }) => line)),
      [[3], [3], [3]],
      version,
    )
    t.is(record(0).status, 0, version)
    const bare = shown('--size', String(SIZE), trace)
    t.true(bare.length >= 6 && bare.every(({ stack }) => stack.length === 0), version)
  }
})

test('older traces are shown without stacks, and only as far as is asked', (t) => {
  const trace = join(golden(), '3.12.trace')
  const events = shown('--from', '5', '--to', '9', trace)
  t.is(events.length, 5)
  t.true(events.every(({ stack }) => stack === undefined || stack.length === 0))
})

test('what cannot be carried out says what was expected', (t) => {
  const trace = join(golden(), '3.12.trace')
  for (const wrong of [
    ['--address', 'x'],
    ['--site', 'rows.py'],
    ['--size', '-1'],
    ['--from', 'x'],
    ['--from', '9', '--to', '8'],
    ['--site', 'rows.py:3'],
  ]) {
    const { status, stderr } = obmalloc('events', ...wrong, trace)
    t.is(status, 2)
    t.regex(stderr, /expected/)
  }
  t.is(obmalloc('events', join(folder, 'missing')).status, 3)
})

withPython('moments of a recording are found, shown and refused in words', (t) => {
  const program = [
    'import sys, threading',
    'rows = [bytes(100) for _ in range(50000)]',
    'sys.audit("obmalloc.mark", "full")',
    'del rows[1:]',
    'sys.audit("obmalloc.mark", "empty")',
  ].join('\n')
  const trace = join(folder, 'moments.trace')
  const { status, stderr } = obmalloc('record', '--stacks', '0', '--every', '1', '-o', trace, '--', '-c', program)
  t.is(status, 0, stderr)
  const at = (moment: string) => {
    const { stdout, ...rest } = obmalloc('replay', '--json', '--at', moment, trace)
    return {
      ...rest,
      found:
        stdout === ''
          ? null
          : (JSON.parse(stdout) as { at: { event: number; seconds: number }; statsNow: string; exact: boolean }),
    }
  }
  const arenas = (moment: string) => {
    const { found } = at(moment)
    t.true(found?.exact, moment)
    t.true(found!.at.seconds > 0, moment)
    return Number(/# arenas allocated current +=\s+(\d+)/.exec(found!.statsNow)?.[1])
  }
  const [full, empty, peak, end] = [arenas('mark:full'), arenas('mark:empty'), arenas('peak'), arenas('end')]
  t.is(full, peak)
  t.true(empty < full)
  t.is(end, empty)
  t.is(arenas('mark:full#1'), full)
  t.is(arenas(`event:${at('mark:full').found!.at.event}`), full)
  t.is(arenas(`time:${at('mark:empty').found!.at.seconds + 1}`) < full, true)
  for (const moment of ['mark:none', 'mark:full#2', 'event:999999999']) {
    const { status, stderr } = at(moment)
    t.is(status, 2)
    t.regex(
      stderr,
      /^obmalloc: expected a moment of the trace, but it has no (mark:|event:).*: it has \d+ events and the marks full, empty\n$/,
    )
  }
  t.like(at('soon'), { status: 2 })
  t.regex(at('soon').stderr, /^obmalloc: expected end, peak, mark:NAME, .* but got "soon"\n$/)
  t.regex(obmalloc('replay', '--at', 'end', '--operation', '3', trace).stderr, /expected --at or --operation, but got both/)

  const lines = obmalloc('events', '--json', trace).stdout.trimEnd().split('\n')
  const events = lines.map(
    (line) => JSON.parse(line) as { note?: string; seconds: number | null; thread?: number; anonymous?: number },
  )
  t.true(events.filter(({ note }) => note === 'memory').every(({ anonymous }) => anonymous! > 1 << 18))
  t.true(events.filter(({ note }) => note === 'memory').length > 2)
  t.is(events.filter(({ note }) => note === 'mark').length, 2)
  t.is(new Set(events.map(({ thread }) => thread).filter((thread) => thread !== undefined)).size, 1)
})

test('a trace from before there was time has moments all the same', (t) => {
  const trace = join(golden(), '3.13.trace')
  const { status, stdout } = obmalloc('replay', '--json', '--at', 'end', trace)
  t.is(status, 0)
  t.is((JSON.parse(stdout) as { at: { seconds: null } }).at.seconds, null)
  t.is(obmalloc('replay', '--at', 'time:1', trace).status, 2)
})
