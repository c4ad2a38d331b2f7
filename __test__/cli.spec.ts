/** The command line, as a person or a program uses it: what it prints where, and its exit codes. */

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as after } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import test from 'ava'

import { findInterpreters } from '../dist/interpreters.js'
import { golden } from '../dist/tools.js'
import { readHeader, TraceError, type TraceHeader } from '../dist/trace.js'

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
    ['replay', '--operation', '18446744073709551615', trace],
    ['record', '--stacks', '18446744073709551615', '--', '-c', 'pass'],
    ['replay', '--release', '2.7', trace],
    ...['compare', 'record', 'trim', 'check'].map((command) => [command, '--', 'python3', 'app.py']),
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
    eight: bytes.subarray(0, 8),
    headless: Buffer.concat([bytes.subarray(0, 12), Buffer.from('\x04\0\0\0null')]),
    newer: Buffer.from(bytes),
    damaged: Buffer.from(bytes),
  }
  files.newer[8] = 99
  files.damaged[bytes.length >> 1]! ^= 1
  for (const [name, content] of Object.entries(files)) {
    writeFileSync(join(folder, name), content)
    const { status, stderr } = obmalloc(['replay', join(folder, name)])
    t.is(status, 3, name)
    t.true(stderr.startsWith(`obmalloc: ${join(folder, name)}: `), stderr)
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

test('a replay that is told to stop says so, and nothing else of what comes later', (t) => {
  for (const operation of [3, 5000]) {
    const { status, stdout, stderr } = obmalloc(['replay', '--operation', String(operation), trace])
    t.is(status, 0)
    t.regex(stdout, /: exact\n/)
    t.is(stderr, `stopped after operation ${operation}, as it was told to: what comes later was not compared\n`)
  }
  const { events } = JSON.parse(obmalloc(['replay', '--json', trace]).stdout)
  t.is(obmalloc(['replay', '--operation', String(events - 1), trace]).stderr, '')
  const beyond = obmalloc(['replay', '--operation', String(events), trace])
  t.deepEqual(
    [beyond.status, beyond.stderr],
    [0, `the trace has no operation ${events}: it holds ${events}, counted from 0, and all were compared\n`],
  )
  const { stderr } = obmalloc(['replay', '--release', '3.9', trace])
  t.notRegex(stderr, /orderly/)
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
  const ls = obmalloc(['record', '--python', '/bin/ls', '--', 'script.py'])
  t.is(ls.status, 2)
  t.is(ls.stderr, 'obmalloc: /bin/ls cannot be used: it ends with exit code 2\n')
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
  t.regex(stderr, /replaced the recorder's allocators/)
})

withPython('a header in which a bit has changed is damaged, or says the same', (t) => {
  const file = join(folder, 'header.trace')
  recorded(['-o', file, '--', '-c', '0'])
  // A header whose sum has another name has none.
  const { failed: _, sum: __, ...good } = readHeader(file) as TraceHeader & { sum?: string }
  const bytes = readFileSync(file)
  const end = 16 + bytes.readUInt32LE(12)
  const changed = join(folder, 'changed.trace')
  for (let at = 0; at < end; at++) {
    const other = Buffer.from(bytes.subarray(0, end + 100))
    other[at]! ^= 1 << (at % 8)
    writeFileSync(changed, other)
    try {
      t.like(readHeader(changed), good, `byte ${at}`)
    } catch (error) {
      t.true(error instanceof TraceError)
    }
  }
})

withPython('a trace is recorded through a link that leads to none yet', (t) => {
  const link = join(folder, 'link.trace')
  symlinkSync('linked.trace', link)
  const { status, complete } = recorded(['-o', link, '--', '-c', '0'])
  t.deepEqual([status, complete], [0, true])
  t.is(obmalloc(['replay', join(folder, 'linked.trace')]).status, 0)
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

/** Records a program with `--json`. */
function recorded(args: string[], env: Record<string, string> = {}) {
  const { status, stdout, stderr } = obmalloc(['record', '--python', python!.path, '--json', ...args], env)
  const json = JSON.parse(stdout) as {
    trace: string
    children: string[]
    ended: number | string | null
    events: number
    complete: boolean
  }
  return { status, stderr, ...json }
}

withPython('record --json prints JSON alone, and says that all is there', (t) => {
  const file = join(folder, 'whole.trace')
  const { status, stderr, ...json } = recorded(['-o', file, '--', '-c', 'print("hello"); raise SystemExit(7)'])
  t.is(status, 7)
  t.regex(stderr, /^hello\n/)
  t.like(json, { trace: file, children: [], ended: 7, complete: true })
  t.is(json.events, JSON.parse(obmalloc(['replay', '--json', file]).stdout).events)
})

withPython('a trace that cannot be made is said before the program runs', (t) => {
  for (const place of ['/dev/full', folder, '/proc/x.trace', join(folder, 'missing', 'x.trace')]) {
    const { status, stderr, ...json } = recorded(['-o', place, '--', '-c', 'print("ran")'])
    t.is(status, 4, place)
    t.like(json, { trace: place, children: [], ended: null, events: 0, complete: false })
    t.regex(stderr, /^obmalloc: cannot write .*\n$/)
  }
  const file = join(folder, 'nowhere.trace')
  const { status, stderr, complete } = recorded(['-o', file, '--', '-c', 'print("ran")'], { TMPDIR: join(folder, 'missing') })
  t.deepEqual([status, complete], [4, false])
  t.regex(stderr, /^obmalloc: cannot record into .*: ENOENT: .*\n$/)
})

withPython('a trace that is not whole ends with 4, and why is said', (t) => {
  const file = join(folder, 'cut.trace')
  const abrupt = 'import ctypes; ctypes.CDLL(None).syscall(231, 0)'
  const limit = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200000, 200000)); x = [str(i) for i in range(99999)]'
  for (const [program, env, reason] of [
    [['-c', limit], {}, /^cannot write .*cut\.trace: File too large \(os error 27\); nothing more was recorded\n/],
    [['-X', 'dev', '-c', 'pass'], {}, /^-X dev replaced the recorder's allocators: raw, mem and obj calls are not recorded\n/],
    [['-c', 'pass'], { PYTHONMALLOC: 'malloc' }, /^PYTHONMALLOC=malloc .* replaced the recorder's allocators/],
    [['-c', abrupt], {}, /^the trace has no end: the last calls are missing\n/],
    // A program that the process executes in its place counts as the program.
    [['-c', `import os, sys; os.execv(sys.executable, ['python3', '-c', '${abrupt}'])`], {}, /^the trace has no end/],
  ] as const) {
    const { status, stderr, complete, ended } = recorded(['-o', file, '--', ...program], env)
    t.deepEqual([status, complete, ended], [4, false, 0], stderr)
    t.regex(stderr, reason)
  }
  const nothing = join(folder, 'nothing.trace')
  const args = [
    process.execPath,
    join(root, 'dist', 'cli.js'),
    'record',
    '--python',
    python!.path,
    '-o',
    nothing,
    '--',
    '-c',
    '0',
  ]
  const { status, stderr } = spawnSync('sh', ['-c', 'ulimit -f 0; exec "$0" "$@"', ...args], { encoding: 'utf8' })
  t.deepEqual([status, stderr], [4, `nothing could be written to ${nothing}\n`])
  recorded(['-o', file, '--', '-c', limit])
  // The process ended as usual, so only the limit is to be named.
  t.regex(obmalloc(['replay', file]).stderr, /^the recorder could not write more than this: File too large.*\n$/)
  const compared = obmalloc(['compare', '--python', python!.path, '--', '-c', limit])
  t.is(compared.status, 4)
  t.regex(compared.stderr, /: cannot write .*: File too large/)
  t.notRegex(compared.stderr, /orderly/)
  for (const mode of [[], ['-X', 'dev']]) {
    const named = recorded(['-o', file, '--', ...mode, '-c', 'import json'], { PYTHONMALLOC: 'pymalloc' })
    t.deepEqual([named.status, named.complete], [0, true])
    t.is(obmalloc(['replay', file]).status, 0)
  }
  const quick = recorded(['-o', file, '--', '-c', 'import ctypes; ctypes.CDLL(None).quick_exit(3)'])
  t.deepEqual([quick.status, quick.complete], [3, true])
  t.is(obmalloc(['replay', file]).status, 0)
})

withPython('a process that cannot make its trace is named', (t) => {
  // With the process's id behind it, the name is longer than the file system allows.
  const file = join(folder, 'x'.repeat(253))
  const program = ['-c', 'import subprocess, sys; subprocess.run([sys.executable, "-c", "pass"], check=True)']
  const { status, stderr, complete } = recorded(['-o', file, '--', ...program])
  t.deepEqual([status, complete], [4, false])
  t.regex(stderr, /^process (\d+) was not recorded: cannot write .*\.\1: File name too long \(os error 36\)$/m)
  t.is(obmalloc(['replay', file]).status, 0)
})

withPython('a program that is ended by a signal ends with 128 and its number, and is named', (t) => {
  const file = join(folder, 'signalled.trace')
  for (const [name, number] of Object.entries({ SIGABRT: 6, SIGKILL: 9, SIGSEGV: 11, SIGTERM: 15 })) {
    const { status, stderr, ...json } = recorded(['-o', file, '--', '-c', `import os; os.kill(os.getpid(), ${number})`])
    t.is(status, 128 + number)
    t.like(json, { ended: name, complete: false })
    t.regex(stderr, new RegExp(`^the program was ended by ${name}$`, 'm'))
  }
  const { status, complete } = recorded(['-o', file, '--', '-c', 'raise KeyboardInterrupt'])
  t.deepEqual([status, complete], [130, true])
  t.is(obmalloc(['replay', file]).stderr, '')
  const last = ['--', '-c', 'import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 3)']
  const named = recorded(['-o', file, ...last])
  t.deepEqual([named.status, named.ended], [165, 'SIGRTMIN+3'])
  t.regex(named.stderr, /^the program was ended by SIGRTMIN\+3$/m)
  const { status: code, stderr } = obmalloc(['check', '--python', python!.path, ...last])
  t.is(code, 4)
  t.regex(stderr, /; the program ended with SIGRTMIN\+3\nprocess \d+ was killed: it was looked at until then\n$/)
})

withPython('children are those of the run, and no other parent is taken for theirs', (t) => {
  const file = join(folder, 'family.trace')
  const child = 'if os.fork() == 0: [str(i) for i in range(1000)]; os._exit(0)\nos.wait()'
  const first = recorded(['-o', file, '--', '-c', `import os\n${child}\n${child}`])
  t.is(first.children.length, 2)
  t.is(obmalloc(['replay', file, ...first.children]).status, 0)
  const second = recorded(['-o', file, '--', '-c', 'x = [str(i) for i in range(50000)]'])
  t.deepEqual([second.children, second.complete], [[], true])
  t.is(obmalloc(['replay', file]).status, 0)
  const { status, stderr } = obmalloc(['replay', first.children[0]!])
  t.is(status, 3)
  t.regex(stderr, /: the parent's trace is of another recording: /)
  const again = recorded(['-o', file, '--stacks', '0', '--', '-c', `import os; x = [str(i) for i in range(50000)]\n${child}`])
  truncateSync(file, 100_000)
  const cut = obmalloc(['replay', again.children[0]!])
  t.is(cut.status, 3)
  t.regex(cut.stderr, /: the parent's trace .* is cut off before the fork\n$/)
})

withPython('a trace that the program removes, or another run writes, is not said to be written', (t) => {
  const file = join(folder, 'taken.trace')
  const removed = recorded(['-o', file, '--', '-c', `import os; x = [0] * 9999; os.unlink('${file}')`])
  t.deepEqual([removed.status, removed.complete], [4, false])
  t.regex(removed.stderr, /^no trace is at .*: it was not made, or the program has removed or overwritten it\n$/)
  const forks = `import os\nif os.fork() == 0: x = [str(i) for i in range(9999)]; os._exit(0)\nos.wait(); os.unlink('${file}')`
  const child = recorded(['-o', file, '--', '-c', forks])
  t.deepEqual([child.status, child.complete, child.children.length], [4, false, 1])
  t.regex(child.stderr, /^no trace is at .*\nrecorded a process that it started into .*\.trace\.\d+\n$/)
  const args = [process.execPath, join(root, 'dist', 'cli.js'), 'record', '--python', python!.path, '-o', file, '--', '-c', '0']
  const { status, stderr } = spawnSync('flock', [file, ...args], { encoding: 'utf8' })
  t.is(status, 0)
  t.regex(stderr, /^recorded CPython .* into (.*\.trace\.\d+)\nnext: obmalloc why \1\n$/)
})

withPython('every process of a run is recorded, waited for or named', (t) => {
  const file = join(folder, 'going.trace')
  const version = 'subprocess.run([sys.executable, "--version"], env={})'
  const failing = 'if os.fork() == 0: import _testcapi; _testcapi.set_nomemory(0); os._exit(0)\nos.wait()'
  const daemon = 'if os.fork() == 0: time.sleep(0.5); x = [str(i) for i in range(1000)]; os._exit(0)\nos._exit(0)'
  const short = recorded(['-o', file, '--', '-c', ['import os, subprocess, sys, time', version, failing, daemon].join('\n')])
  t.deepEqual([short.status, short.complete, short.children.length], [0, true, 3], short.stderr)
  const replayed = obmalloc(['replay', file, ...short.children])
  t.is(replayed.status, 0, replayed.stderr)
  const long = recorded(['-o', file, '--', '-c', 'import os, time\nif os.fork() == 0: str(1.5); time.sleep(6)'])
  t.deepEqual([long.status, long.complete], [4, false])
  t.regex(long.stderr, /^process \d+ still runs: /m)
})

withPython('a helper that ends a moment after the program is not taken for one that was killed', (t) => {
  const [script, file] = [join(folder, 'pool.py'), join(folder, 'pool.trace')]
  const lines = [
    'import multiprocessing',
    'if __name__ == "__main__":',
    '    pool = multiprocessing.get_context("spawn").Pool(1)',
    '    pool.map(str, range(3)); pool.close(); pool.join()',
  ]
  writeFileSync(script, lines.join('\n'))
  for (let round = 0; round < 3; round++) {
    const { status, stderr, children } = recorded(['-o', file, '--', script])
    t.is(status, 0)
    t.is(children.length, 2)
    t.notRegex(stderr, /orderly/)
  }
})

withPython('a program does not notice that it is recorded', (t) => {
  const file = join(folder, 'unnoticed.trace')
  const run = "subprocess.run([sys.executable, '-X', 'dev', '-c', 'pass'], capture_output=True)"
  const { stderr, ended } = recorded(['-o', file, '--', '-c', `import subprocess, sys; assert ${run}.stderr == b''`])
  t.is(ended, 0)
  t.regex(stderr, /^process \d+: -X dev replaced the recorder's allocators: raw, mem and obj calls are not recorded$/m)
})

withPython('programs under tracemalloc are replayed exactly', (t) => {
  const file = join(folder, 'traced.trace')
  for (const { path, version } of findInterpreters([]).usable) {
    const script = 'import tracemalloc; tracemalloc.stop(); tracemalloc.start(5); x = [bytes(i) for i in range(2000)]; x = x[::2]'
    for (const program of ['pass', script]) {
      t.is(obmalloc(['record', '--python', path, '-o', file, '--', '-X', 'tracemalloc', '-c', program]).status, 0)
      const { status, stderr } = obmalloc(['replay', file])
      t.is(status, 0, `${version}: ${stderr}`)
    }
  }
})

/** A program that prints the name of each signal that it gets, one a line. */
const LISTENER = [
  'import os, signal, time',
  'def told(number, frame): print(signal.Signals(number).name, flush=True)',
  'for name in ["SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCONT"]: signal.signal(getattr(signal, name), told)',
  'print(os.getpid(), flush=True)',
  'while True: time.sleep(0.05)',
].join('\n')

/** Starts the command line with a program that listens, and gives its lines one by one. */
async function listening(command: string[], program = LISTENER) {
  const args = [join(root, 'dist', 'cli.js'), ...command, '--python', python!.path, '--', '-c', program]
  const child = spawn(process.execPath, args, { cwd: folder, detached: true, stdio: ['ignore', 'pipe', 'pipe'] })
  let said = ''
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (said += text))
  let read = 0
  const line = async (): Promise<string> => {
    while (!said.includes('\n', read)) await after(10)
    const end = said.indexOf('\n', read)
    const next = said.slice(read, end)
    read = end + 1
    return next
  }
  return { child, line, pid: Number(await line()), said: () => said }
}

// These tests depend on time, and other tests would delay them.
const serial = python ? test.serial : test.skip
serial('a comparison that is told to end leaves no traces behind', async (t) => {
  const TMPDIR = mkdtempSync(join(folder, 'temporary-'))
  const program = ['-c', 'x = [str(i) for i in range(10**6)]; print("over", flush=True)']
  const args = [join(root, 'dist', 'cli.js'), 'compare', '--python', python!.path, '--', ...program]
  // The signal comes while the trace is being written, replayed, or timed.
  for (const late of [0, 200, 500]) {
    const child = spawn(process.execPath, args, { env: { ...process.env, TMPDIR }, stdio: ['ignore', 'ignore', 'pipe'] })
    const ended = new Promise((done) => child.on('close', (code, signal) => done(code ?? signal)))
    let said = ''
    child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text))
    while (!said.includes('over')) await after(10)
    await after(late)
    child.kill('SIGINT')
    t.is(await ended, 130)
    t.regex(said, /^stopped by SIGINT: not all was compared\n/m)
    t.deepEqual(readdirSync(TMPDIR), [])
  }
})

withPython('what is sent to the command reaches the program, and no debugger opens', async (t) => {
  for (const [command, code] of [
    [['record', '-o', 'listening.trace'], 130],
    [['check'], 0],
    [['compare'], 130],
  ] as const) {
    const { child, line, said } = await listening([...command])
    for (const signal of ['SIGUSR1', 'SIGUSR2', 'SIGQUIT', 'SIGALRM', 'SIGHUP', 'SIGCONT'] as const) {
      child.kill(signal)
      t.is(await line(), signal)
    }
    child.kill('SIGINT')
    const [ended] = (await once(child, 'close')) as [number]
    t.is(ended, code, said())
    t.regex(said(), /KeyboardInterrupt/)
    t.notRegex(said(), /Debugger/)
  }
})

withPython('what is sent to a group, or to the command alone, reaches the program once', async (t) => {
  for (const command of [['record', '-o', 'group.trace'], ['trim']]) {
    const program = LISTENER.replace('["SIGHUP"', '["SIGINT", "SIGTERM", "SIGHUP"')
    const { child, line, said } = await listening(command, program)
    const start = said().length
    const expected: string[] = []
    // It is a session of its own, so its group has no terminal.
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1'] as const)
      for (const target of [-child.pid!, child.pid!, -child.pid!]) {
        process.kill(target, signal)
        t.is(await line(), signal)
        expected.push(`${signal}\n`)
        await after(20)
      }
    await after(100)
    t.is(said().slice(start), expected.join(''))
    process.kill(-child.pid!, 'SIGKILL')
    await once(child, 'close')
  }
})

/** Prints its process id, and waits to be ended. */
const SLEEPER = 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'

/** The letter that the system has for what a process does; nothing when it is gone. */
function stateOf(pid: number): string | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return text[text.lastIndexOf(')') + 2]
  } catch {
    return undefined
  }
}

withPython('no program is left behind when the command is killed', async (t) => {
  const { child, pid } = await listening(['record', '-o', 'killed.trace'])
  child.kill('SIGKILL')
  await once(child, 'close')
  for (let look = 0; look < 200 && stateOf(pid) !== undefined && stateOf(pid) !== 'Z'; look++) await after(10)
  t.true([undefined, 'Z'].includes(stateOf(pid)))
})

withPython('what ends npx ends the program', async (t) => {
  // npx starts the command with a shell in between, which passes nothing on.
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    const command = `'${process.execPath}' '${join(root, 'dist', 'cli.js')}' record -o npx.trace --python '${python!.path}'`
    const args = [`process.title = 'npm exec obmalloc'; const { spawn } = require('child_process')`, `const signal = '${signal}'`]
    args.push(`const shell = spawn('sh', ['-c', ${JSON.stringify(`${command} -- -c '${SLEEPER}'; exit`)}], { stdio: 'inherit' })`)
    args.push(`shell.on('exit', () => process.exit()); process.on('SIGTERM', () => shell.kill('SIGTERM'))`)
    const npx = spawn(process.execPath, ['-e', args.join('\n')], { cwd: folder, stdio: ['ignore', 'pipe', 'inherit'] })
    const [pid] = (await once(npx.stdout.setEncoding('utf8'), 'data')) as [string]
    npx.kill(signal)
    for (let look = 0; look < 1000 && ![undefined, 'Z'].includes(stateOf(Number(pid))); look++) await after(10)
    t.true([undefined, 'Z'].includes(stateOf(Number(pid))), signal)
  }
})

withPython('a program interrupted from a terminal is interrupted once, and one that is stopped stops the command', (t) => {
  const script = [
    'import os, pty, signal, sys, time',
    'pid, terminal = pty.fork()',
    'if pid == 0: os.execv(sys.argv[1], sys.argv[1:])',
    'said = b""',
    'def until(text):',
    '    global said',
    '    while text not in said: said += os.read(terminal, 1000)',
    'until(b"ready")',
    'os.write(terminal, b"\\x03")',
    'until(b"interrupts 1"); time.sleep(0.5)',
    'os.write(terminal, b"\\x03")',
    'until(b"interrupts 2"); time.sleep(0.2)',
    'os.kill(pid, signal.SIGINT)',
    'until(b"interrupts 3")',
    '_, status = os.waitpid(pid, 0)',
    'assert b"interrupts 4" not in said, said',
    'assert os.WEXITSTATUS(status) == 0, status',
  ]
  const program = [
    'import signal, time',
    'got = []',
    'def told(*_): got.append(1); print("interrupts", len(got), flush=True)',
    'signal.signal(signal.SIGINT, told)',
    'print("ready", flush=True)',
    'while len(got) < 3: time.sleep(0.05)',
    'time.sleep(0.5)',
  ]
  const command = [join(root, 'dist', 'cli.js'), 'record', '-o', 'terminal.trace', '--python', python!.path, '--', '-c']
  const args = ['-c', script.join('\n'), process.execPath, ...command, program.join('\n')]
  const { status, stderr } = spawnSync(python!.path, args, { encoding: 'utf8', cwd: folder, timeout: 60_000 })
  t.is(status, 0, stderr)
  const stopping = [
    'import os, signal, subprocess, sys, time',
    'command = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True, preexec_fn=os.setpgrp)',
    'program = int(command.stdout.readline())',
    'def state(pid): return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0]',
    'def until(is_stopped):',
    '    while [state(command.pid) == "T", state(program) == "T"] != [is_stopped] * 2: time.sleep(0.01)',
    'command.send_signal(signal.SIGTSTP)',
    'until(True)',
    'command.send_signal(signal.SIGCONT)',
    'until(False)',
    'assert command.wait() == 0',
  ]
  const sleeping = 'import os, time; print(os.getpid(), flush=True); time.sleep(2)'
  const stopped = spawnSync(python!.path, ['-c', stopping.join('\n'), process.execPath, ...command, sleeping], {
    encoding: 'utf8',
    cwd: folder,
    timeout: 60_000,
  })
  t.is(stopped.status, 0, stopped.stderr)
})

test('when the output is not read any more, the end is quiet', async (t) => {
  const child = spawn(process.execPath, [join(root, 'dist', 'cli.js'), 'compare'], { env: { ...process.env, ...NOWHERE } })
  child.stdout.destroy()
  let said = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text))
  const [code] = (await once(child, 'close')) as [number]
  t.is(code, 141)
  t.notRegex(said, /EPIPE/)
})

test('when messages are not read any more, the end is that of a broken pipe', async (t) => {
  const child = spawn(process.execPath, [join(root, 'dist', 'cli.js'), 'compare'], { env: { ...process.env, ...NOWHERE } })
  child.stderr.destroy()
  child.stdout.resume()
  const [code] = (await once(child, 'close')) as [number]
  t.is(code, 141)
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
