/** What the commands have in common: they overwrite nothing, end with 4 if the replay differs, and name the next command. */

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { copyFileSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import test from 'ava'

import { findInterpreters } from '../dist/interpreters.js'
import { take } from '../dist/signals.js'
import { golden } from '../dist/tools.js'
import { isVerified, type Why } from '../dist/why.js'

const cli = fileURLToPath(new URL('../dist/cli.js', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'obmalloc-commands-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

const { usable } = findInterpreters([])
const withPython = usable.length > 0 ? test.serial : test.skip

function obmalloc(...args: string[]) {
  const options = { encoding: 'utf8', cwd: folder, maxBuffer: 1 << 28 } as const
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...args], options)
  return { status, stdout, stderr }
}

const trace = join(golden(), '3.12.trace')

/** What each command is called with besides the trace; `diff` is of two. */
const COMMANDS: readonly (readonly string[])[] = [
  ['events', '--to', '100'],
  ['report', '--sources', 'none'],
  ['why'],
  ['top'],
  ['map'],
  ['what-if', '--arena', '256K'],
  ['diff', trace],
  ['budget', '--peak', '1G'],
  ['export', '--to', 'csv'],
]

for (const [name, ...args] of COMMANDS)
  test(`${name} writes a file, and overwrites none without --force`, (t) => {
    const file = join(folder, `${name}.out`)
    const call = [name!, ...args, trace, '-o', file]
    t.is(obmalloc(...call).status, 0)
    const written = readFileSync(file, 'utf8')
    t.true(written.length > 0)
    writeFileSync(file, 'mine')
    const again = obmalloc(...call)
    t.is(again.status, 2)
    t.is(again.stderr, `obmalloc: ${file} is there already; --force replaces it\n`)
    t.is(readFileSync(file, 'utf8'), 'mine')
    t.is(obmalloc(...call, '-f').status, 0)
    t.not(readFileSync(file, 'utf8'), 'mine')
  })

test.serial('a file is written through a link that leads to none yet, and what cannot be written is named', (t) => {
  const [link, file] = [join(folder, 'link'), join(folder, 'linked')]
  symlinkSync('linked', link)
  t.is(obmalloc('top', trace, '-o', link).status, 0)
  t.true(readFileSync(file, 'utf8').length > 0)
  t.is(obmalloc('top', trace, '-o', link).stderr, `obmalloc: ${link} is there already; --force replaces it\n`)
  const lost = join(folder, 'lost')
  symlinkSync(join(folder, 'nowhere', 'linked'), lost)
  for (const force of [[], ['-f']]) {
    const { status, stderr } = obmalloc('top', trace, '-o', lost, ...force)
    t.is(status, 4)
    t.true(stderr.startsWith(`obmalloc: cannot write ${lost}: ENOENT`), stderr)
  }
})

test.serial('Node.js has one listener for a signal, however many programs get it', (t) => {
  const told: number[] = []
  const all = Array.from({ length: 12 }, (_, number) =>
    take(number === 5 ? ['SIGUSR2', 'SIGALRM'] : ['SIGUSR2'], () => told.push(number)),
  )
  const counts = () => [process.listenerCount('SIGUSR2'), process.listenerCount('SIGALRM')]
  t.deepEqual(counts(), [1, 1])
  process.emit('SIGALRM', 'SIGALRM')
  process.emit('SIGUSR2', 'SIGUSR2')
  t.deepEqual(told, [5, ...all.keys()])
  for (const leave of all.slice(1)) leave()
  t.deepEqual(counts(), [1, 0])
  all[0]!()
  t.deepEqual(counts(), [0, 0])
})

test.serial('a command that a signal ends leaves no temporary folder behind', async (t) => {
  for (const [command, signal] of [
    [['what-if', '--allocator', 'glibc,jemalloc,mimalloc,tcmalloc', trace], 'SIGINT'],
    [['report', '-o', 'ended.html', trace], 'SIGTERM'],
    [['report', '-o', 'ended.html', trace], 'SIGHUP'],
  ] as const) {
    const TMPDIR = mkdtempSync(join(folder, 'temporary-'))
    const options = { cwd: folder, env: { ...process.env, TMPDIR }, stdio: 'ignore' } as const
    const child = spawn(process.execPath, [cli, ...command], options)
    const ended = once(child, 'close')
    while (child.exitCode === null && readdirSync(TMPDIR).length === 0) await setTimeout(2)
    child.kill(signal)
    t.deepEqual(await ended, [null, signal])
    t.deepEqual(readdirSync(TMPDIR), [])
  }
})

for (const [name, ...args] of COMMANDS)
  test(`${name} names the command to run next, and has its data on stdout alone`, (t) => {
    const out = name === 'report' ? ['-o', join(folder, 'next.html')] : []
    const { stdout, stderr } = obmalloc(name!, ...args, ...out, trace)
    t.regex(stdout + stderr, /\nnext: .*\n$|^next: .*\n$/)
    const file = ['-o', join(folder, `${name}.json`)]
    const json = obmalloc(name!, ...args, ...(name === 'report' || name === 'export' ? file : []), trace, '--json')
    for (const line of json.stdout.trimEnd().split('\n')) t.notThrows(() => JSON.parse(line) as unknown)
    t.notRegex(json.stderr, /next:/)
  })

/** Runs a line as a shell does that finds `obmalloc`. */
function pasted(line: string) {
  const env = { ...process.env, NODE: process.execPath, CLI: cli }
  return spawnSync('sh', ['-c', `obmalloc() { "$NODE" "$CLI" "$@"; }; ${line}`], { encoding: 'utf8', cwd: folder, env })
}

for (const [name, ...args] of COMMANDS.filter(([name]) => name !== 'report'))
  test(`the command that ${name} names can be pasted, whatever the trace is called, and is of the same moment`, (t) => {
    const odd = `-it's ${name}'s $trace.trace`
    copyFileSync(trace, join(folder, odd))
    const hasMoment = !['events', 'diff'].includes(name!)
    const moment = hasMoment ? ['--at', 'event:9000'] : []
    const { stdout, stderr } = obmalloc(name!, ...args, ...moment, name === 'diff' ? `./${odd}@event:9000` : `./${odd}`)
    const next = /^next: (.*)$/m.exec(stdout + stderr)![1]!
    t.is(next.includes('--at event:9000'), name !== 'events', next)
    const { status, stdout: answer, stderr: error } = pasted(`${next} --json`)
    t.is(status, 0, next + error)
    const { trace: of, at } = JSON.parse(answer) as Why
    t.is(of.path, `./${odd}`)
    if (name !== 'events') t.is(at.event, 9000)
  })

test('what npx started names what npx can start', (t) => {
  const next = (script: string): string => {
    const env = { ...process.env, npm_command: 'exec', npm_lifecycle_script: script }
    return /^next: .*$/m.exec(spawnSync(process.execPath, [cli, 'top', trace], { encoding: 'utf8', env }).stdout)![0]
  }
  t.is(next("'obmalloc'"), `next: npx obmalloc why ${trace}`)
  t.is(next('obmalloc'), `next: npx obmalloc why ${trace}`)
  t.is(next('ava'), `next: obmalloc why ${trace}`)
})

test('export has no JSON of its own beside its data', (t) => {
  t.is(obmalloc('export', '--to', 'csv', '--json', trace).status, 2)
})

/** A trace whose header names the wrong release. So the addresses of its replay differ. */
function unverified(): string {
  const path = join(folder, 'other.trace')
  const bytes = readFileSync(trace)
  bytes.write('3.9.18', bytes.indexOf('3.12.1'))
  writeFileSync(path, bytes)
  return path
}

for (const [name, ...args] of COMMANDS.filter(([name]) => name !== 'events'))
  test(`${name} ends with 4 where the replay differs from the recording`, (t) => {
    const out = name === 'report' ? ['-o', join(folder, 'other.html')] : []
    const { status, stdout, stderr } = obmalloc(name!, ...args, ...out, unverified())
    t.is(status, 4, stdout + stderr)
  })

test('an answer whose addresses are equal, but not what was asked for below, is not verified', (t) => {
  const answer = (rule: string): Why => ({ verified: { addresses: 1, matched: 1 }, findings: [{ rule }] }) as unknown as Why
  t.true(isVerified(answer('live')))
  t.false(isVerified(answer('unverified')))
})

withPython('record replaces a trace, and nothing else without --force', (t) => {
  const file = join(folder, 'recorded.trace')
  const record = (...options: string[]) => obmalloc('record', ...options, '-o', file, '--', '-c', 'pass')
  const first = record()
  t.is(first.status, 0, first.stderr)
  t.regex(first.stderr, new RegExp(`\nnext: obmalloc why ${file}\n$`))
  t.is(record().status, 0, 'it is a trace')
  writeFileSync(file, '')
  t.is(record().status, 0, 'it is empty')
  writeFileSync(file, 'import this')
  const refused = record()
  t.is(refused.status, 2)
  t.is(refused.stderr, `obmalloc: ${file} is there already, and is no trace; --force replaces it\n`)
  t.is(readFileSync(file, 'utf8'), 'import this')
  t.is(record('--force').status, 0)
  t.is(obmalloc('replay', file).status, 0)
  t.regex(record('--trim', 'idle,often').stderr, /^obmalloc: expected every=30s, .* but got idle,often\n$/)
  t.is(record('--trim', 'idle,often').status, 2)
  t.is(record('--trim', 'asked,every=500ms,above=8M').status, 0)
  const started = join(folder, 'started')
  writeFileSync(file, 'import this')
  obmalloc('record', '-o', file, '--', '-c', `open(${JSON.stringify(started)}, "w")`)
  t.false(existsSync(started), 'the program was not run')
})

withPython('blocks of a line that made none are not set apart', (t) => {
  const file = join(folder, 'apart.trace')
  t.is(obmalloc('record', '-o', file, '--', '-c', 'pass').status, 0)
  const { status, stderr } = obmalloc('what-if', '--apart', 'nothing.py:3', file)
  t.is(status, 2)
  t.is(stderr, 'obmalloc: expected a line that asked for memory by then, but nothing.py:3 did not\n')
})
