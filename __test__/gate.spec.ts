/** `obmalloc diff`, `budget` and `export`: two recordings, limits, and other tools' formats. */

import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gunzipSync } from 'node:zlib'

import { Ajv } from 'ajv'
import test from 'ava'
import protobuf from 'protobufjs'

import type { Budget } from '../dist/budget.js'
import { readLimits } from '../dist/commands/budget.js'
import type { Difference } from '../dist/diff.js'
import { findInterpreters } from '../dist/interpreters.js'
import { golden } from '../dist/tools.js'

const cli = fileURLToPath(new URL('../dist/cli.js', import.meta.url))
const schemas = fileURLToPath(new URL('schemas/', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'obmalloc-gate-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

const { usable } = findInterpreters([])
const withPython = usable.length > 0 ? test : test.skip
const older = usable.find(({ version }) => version.startsWith('3.10'))

function obmalloc(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...args], { cwd: folder, maxBuffer: 1 << 28 })
  return { status, stdout: stdout.toString(), bytes: stdout, stderr: stderr.toString() }
}

/** Writes a program into a folder of its own. The file's date is old, because source newer than its recording is not shown. */
function program(name: string, lines: readonly string[]): string {
  mkdirSync(join(folder, name), { recursive: true })
  const path = join(folder, name, 'app.py')
  writeFileSync(path, `${lines.join('\n')}\n`)
  utimesSync(path, new Date(1e12), new Date(1e12))
  return path
}

function recorded(name: string, script: string, ...options: string[]): string {
  const trace = join(folder, `${name}.trace`)
  const { status, stderr } = obmalloc('record', ...options, '-o', trace, '--', script)
  if (status !== 0) throw new Error(stderr)
  return trace
}

/** Leaves 1,000 bytes at every mark, in a bytes object of 1,033. */
const LEAK = [
  'import sys',
  'history = [None] * 100',
  'def work(n):',
  '    page = [str(i) for i in range(1000)]',
  '    history[n] = bytes(967)',
  'for n in range(20):',
  '    work(n)',
  '    sys.audit("obmalloc.mark", "job")',
]

withPython('a leak of so many bytes a mark is found at that limit, and not below', (t) => {
  const trace = recorded('leak', program('leak', LEAK))
  const judged = (growth: string) => {
    const { status, stdout } = obmalloc('budget', '--json', '--growth', growth, '--mark', 'job', trace)
    const { verdicts } = JSON.parse(stdout) as Budget
    return { status, ...verdicts[0]! }
  }
  t.like(judged('1000'), { status: 1, measured: 1000, broken: true })
  t.like(judged('1001'), { status: 0, measured: 1000, broken: false })
  t.is(judged('1000').stack[0]!.line, 5)

  const github = obmalloc('budget', '--format', 'github', '--growth', '1000', '--mark', 'job', trace)
  t.is(
    github.stdout,
    '::error file=leak/app.py,line=5,title=obmalloc budget::growth a mark "job": 1000 B of less than 1000 B, 0 B over; most of it by work (app.py:5)\n',
  )
  const junit = obmalloc('budget', '--format', 'junit', '--growth', '1K', '--mark', 'job', '--peak', '1K', trace).stdout
  t.regex(junit, /tests="2" failures="1"/)
  t.regex(junit, /<failure message="peak: [\d.]+ MiB of at most 1\.0 KiB, /)
  t.regex(junit, /name="growth a mark &quot;job&quot;"\/>/)
  t.like(obmalloc('budget', '--growth', '1K', '--mark', 'none', trace), {
    status: 2,
    stderr: 'obmalloc: expected two marks or more called "none", but the trace has 0\n',
  })
})

withPython('limits are read, written with a tolerance, and taken from another recording', (t) => {
  const trace = recorded('limits', program('limits', ['kept = [str(n) for n in range(30000)]']))
  const more = recorded('more', program('more', ['kept = [str(n) for n in range(300000)]']))
  const config = join(folder, 'budget.json')
  t.is(obmalloc('budget', '--config', config, '--update', trace).status, 0)
  const limits = JSON.parse(readFileSync(config, 'utf8')) as { peak: number | string; pinned: number }
  t.deepEqual(Object.keys(limits), ['peak', 'held', 'pinned'])
  t.is(obmalloc('budget', '--config', config, trace).status, 0, 'what was measured is within what was written')
  const broken = obmalloc('budget', '--config', config, more)
  t.is(broken.status, 1)
  t.regex(broken.stdout, /^broken {2}peak: .* over; most of it by <(?:listcomp|module)> \(app\.py:1\)/m)
  t.is(obmalloc('budget', '--baseline', trace, trace).status, 0)
  t.is(obmalloc('budget', '--baseline', trace, more).status, 1)
  t.is(obmalloc('budget', '--baseline', trace, '--tolerance', '10000', '--pinned', '100', more).status, 0)
  writeFileSync(config, '{"peek": 3}')
  t.like(obmalloc('budget', '--config', config, trace), {
    status: 2,
    stderr: `obmalloc: ${config}: expected limits as {"peak": "100M", "pinned": 50}, but got {"peek":3}\n`,
  })
  for (const args of [[], ['--growth', '1K'], ['--update'], ['--peak', 'x'], ['--format', 'yaml', '--peak', '1M']])
    t.is(obmalloc('budget', ...args, trace).status, 2, args.join(' '))
  t.is(obmalloc('budget', '--update', '--config', join(folder, 'none.json'), '--baseline', trace, trace).status, 2)
})

withPython('limits that cannot be are refused, on the command line and in a file', (t) => {
  const trace = recorded('cannot', program('cannot', ['pass']))
  const config = join(folder, 'cannot.json')
  const refused = (args: string[], reason: string): void =>
    void t.like(obmalloc('budget', ...args, trace), { status: 2, stderr: `obmalloc: ${reason}\n` }, args.join(' '))
  const percent = 'expected a percentage from 0 to 100, but got'
  const size = 'expected a size like 262144, 256K or 1M, but got'
  refused(['--pinned', '150'], `${percent} 150`)
  refused(['--pinned', '100.1%'], `${percent} 100.1%`)
  refused(['--peak', '99999999999G'], `${size} 99999999999G`)
  for (const [limits, reason] of [
    ['{"pinned": 150}', `pinned: ${percent} 150`],
    ['{"pinned": "150%"}', `pinned: ${percent} 150%`],
    ['{"pinned": -1}', 'pinned: expected a percentage like 10, but got -1'],
    ['{"peak": -1}', `peak: ${size} -1`],
    ['{"peak": 1.5}', `peak: ${size} 1.5`],
    ['{"held": 1e400}', `held: ${size} Infinity`],
    ['{"held": "much"}', `held: ${size} much`],
    ['{"growth": {"job": -1}}', `growth: ${size} -1`],
    ['{"pinned": null}', 'expected limits as {"peak": "100M", "pinned": 50}, but got {"pinned":null}'],
  ]) {
    writeFileSync(config, limits!)
    refused(['--config', config], `${config}: ${reason}`)
  }
  writeFileSync(config, '{"growth": {}}')
  refused(['--config', config], 'expected a limit: --peak, --held, --pinned, --growth with --mark, --config or --baseline')
})

withPython('functions and files of two versions are compared, also if the script has another name', (t) => {
  const code = (size: number): string[] => [
    'import functools, json',
    'class A:',
    '    def __init__(self): self.a = str(id(self))',
    'class B:',
    '    def __init__(self): self.b = str(id(self))',
    'def made(n):',
    `    return bytes(${size})`,
    'kept = [made(n) for n in range(2000)] + [of() for of in (A, B) for n in range(99)]',
    'text = json.loads(json.dumps([str(n) for n in range(2000)]))',
  ]
  const { path, version } = usable.at(-1)!
  const [a, b] = [recorded('first', program('first', code(111)), '--python', path), program('second', code(303))]
  const renamed = join(folder, 'second', 'better.py')
  writeFileSync(renamed, readFileSync(b))
  const after = recorded('second', renamed, '--python', path)
  const rows = (by: string) => {
    const found = JSON.parse(obmalloc('diff', '--json', '--by', by, a, after).stdout) as Difference
    return (end: RegExp) =>
      found.sites.filter(({ name, stack }) => end.test(by === 'site' ? `${stack[0]?.file}:${stack[0]?.line}` : name))
  }
  // A bytes object has a head of 33 bytes. So the blocks have 144 and 336 bytes.
  const grown = 2000 * (336 - 144)
  const [site, ...others] = rows('site')(/better\.py:7$|app\.py:7$/)
  t.deepEqual([site?.grown, others.length], [grown, 0])
  const functions = rows('function')
  for (const [found, name] of [
    [functions, /^made \(.*\/better\.py\)$|^made \(.*\/app\.py\)$/],
    [rows('file'), /\/better\.py$|\/app\.py$/],
  ] as const) {
    const [row, ...more] = found(name)
    t.true(row!.a !== null && row!.b !== null && more.length === 0)
    t.true(Math.abs(row!.grown - grown) < 1000, `${row!.name}: ${row!.grown}`)
  }
  // From 3.11 on a method's name has its class in it.
  t.is(functions(/__init__ \(.*\/better\.py\)$/).length, Number(version.split('.')[1]) >= 11 ? 2 : 1)
  // Each function of a library's file has a row of its own.
  const names = functions(/\/functools\.py\)$/).map(({ name }) => name)
  t.true(names.length > 1 && new Set(names).size === names.length, names.join())
})

withPython('limits that are written leave room for what differs from run to run', (t) => {
  const trace = recorded('small', program('small', ['import sys', ...Array<string>(3).fill('sys.audit("obmalloc.mark", "job")')]))
  const config = join(folder, 'small.json')
  writeFileSync(config, '{"peak": 0, "held": 0, "pinned": 0, "growth": {"job": 0}}')
  const { stdout } = obmalloc('budget', '--json', '--config', config, '--update', trace)
  const { verdicts, arenas, arenaSize } = JSON.parse(stdout) as Budget
  // What is told are the limits that were written.
  const written = readLimits(config)
  t.deepEqual(
    verdicts.map(({ allowed }) => allowed),
    [written.peak, written.held, written.pinned, written.growth!['job']],
  )
  const [peak, held, pinned, growth] = verdicts.map(({ measured }) => measured) as [number, number, number, number]
  const limits = readLimits(config) as { peak: number; held: number; pinned: number; growth: { job: number } }
  t.true(limits.peak >= peak + arenaSize && limits.held >= held + arenaSize, JSON.stringify(limits))
  t.is(held, arenas * arenaSize)
  t.true(limits.pinned >= pinned + 100 / (arenas + 1), JSON.stringify(limits))
  t.true(limits.growth.job > growth + 64)
})

/** The same program, and one in which lines have moved and one keeps ten times as much. */
const BEFORE = [
  'def load():',
  '    return [str(n) + "x" * 30 for n in range(5000)]',
  'kept = load()',
  'other = [bytes(n) for n in range(300)]',
]
const AFTER = [
  '# A new line.',
  '',
  'def load():',
  '    # Another.',
  '    return [str(n) + "x" * 30 for n in range(5000)]',
  'kept = load()',
  'other = [bytes(n) for n in range(3000)]',
]

withPython('sites are the same where only their lines have moved', (t) => {
  const a = recorded('before', program('before', BEFORE))
  const b = recorded('after', program('after', AFTER))
  const { status, stdout } = obmalloc('diff', '--json', a, b)
  t.is(status, 0)
  const { sites } = JSON.parse(stdout) as Difference
  const at = (line: number) => sites.filter(({ stack }) => stack[0]?.file.endsWith('app.py') && stack[0].line === line)
  const loaded = at(5)
  t.true(
    loaded.length > 0 && loaded.every((site) => site.a !== null && site.b !== null && site.grown === 0),
    JSON.stringify(loaded),
  )
  const other = at(7)
  t.true(other[0]!.b!.outside > 3_000_000)
  t.is(sites[0]!.stack[0]!.line, 7, 'what grew most comes first')

  const words = obmalloc('diff', a, b).stdout
  t.regex(words, /^<(?:listcomp|module)> .*app\.py:7.*\+4\.\d MiB/m)
  t.regex(words, /\nnext: obmalloc why .*after\.trace\n$/)
  t.deepEqual(
    (JSON.parse(obmalloc('diff', '--json', a, a).stdout) as Difference).sites.filter(({ grown }) => grown !== 0),
    [],
  )
})

withPython('two moments of one recording are compared, and two releases', (t) => {
  const script = program('leak', LEAK)
  const trace = recorded('moments', script)
  const { stdout } = obmalloc('diff', '--json', `${trace}@mark:job#1`, `${trace}@mark:job`)
  const { sites, a, b } = JSON.parse(stdout) as Difference
  t.is(sites[0]!.stack[0]!.line, 5)
  t.is(sites[0]!.grown, 19_000)
  t.deepEqual([a.moment, b.moment], ['mark:job#1', 'mark:job'])
  if (!older) return
  const other = recorded('older', script, '--python', older.path)
  const own = (JSON.parse(obmalloc('diff', '--json', other, trace).stdout) as Difference).sites.find(
    ({ stack }) => stack[0]?.file === script && stack[0].line === 5,
  )
  t.truthy(own?.a)
  t.truthy(own?.b)
  t.is(own!.grown, 0)
})

withPython('each format is what its own reader expects, and its numbers are those of the table', async (t) => {
  const trace = recorded('formats', program('formats', LEAK))
  const table = JSON.parse(obmalloc('top', '--json', '--top', '1000000', trace).stdout) as {
    rows: { held: number; live: number; outside: number; blocks: number }[]
  }
  const sum = (of: (row: (typeof table.rows)[number]) => number) => table.rows.reduce((all, row) => all + of(row), 0)
  const near = (got: number, expected: number) => Math.abs(got - expected) <= table.rows.length
  const exported = (format: string, what: string) => obmalloc('export', '--to', format, '--what', what, trace)

  const schema = await protobuf.load(join(schemas, 'profile.proto'))
  const Profile = schema.lookupType('perftools.profiles.Profile')
  const message = Profile.decode(gunzipSync(exported('pprof', 'live').bytes))
  const profile = Profile.toObject(message, { longs: Number, defaults: true }) as {
    stringTable: string[]
    sampleType: { type: number; unit: number }[]
    sample: { locationId: number[]; value: number[] }[]
    location: { id: number; line: { functionId: number; line: number }[] }[]
    function: { id: number; name: number; filename: number }[]
  }
  t.deepEqual(
    profile.sampleType.map(({ type, unit }) => [profile.stringTable[type], profile.stringTable[unit]]),
    [
      ['blocks', 'count'],
      ['live', 'bytes'],
    ],
  )
  t.true(
    near(
      profile.sample.reduce((all, { value }) => all + value[1]!, 0),
      sum(({ live, outside }) => live + outside),
    ),
  )
  const leaves = profile.sample.map(({ locationId, value }) => {
    const { line } = profile.location.find(({ id }) => id === locationId[0])!
    const of = profile.function.find(({ id }) => id === line[0]!.functionId)!
    return [profile.stringTable[of.name], profile.stringTable[of.filename]?.endsWith('app.py'), line[0]!.line, value[0]]
  })
  t.deepEqual(
    leaves.filter(([, isOurs, line]) => isOurs === true && line === 5).map((leaf) => leaf[0]),
    ['work'],
  )

  const scope = JSON.parse(exported('speedscope', 'held').stdout) as { profiles: { weights: number[]; samples: number[][] }[] }
  const validate = new Ajv({ strict: false, validateSchema: false }).compile(
    JSON.parse(readFileSync(join(schemas, 'speedscope.json'), 'utf8')) as object,
  )
  t.true(validate(scope), JSON.stringify(validate.errors))
  t.true(
    near(
      scope.profiles[0]!.weights.reduce((all, weight) => all + weight, 0),
      sum(({ held }) => held),
    ),
  )
  t.is(scope.profiles[0]!.weights.length, scope.profiles[0]!.samples.length)

  const lines = exported('collapsed', 'held').stdout.trimEnd().split('\n')
  t.true(lines.every((line) => /^[^;\n]+(;[^;\n]+)* \d+$/.test(line)))
  t.true(
    near(
      lines.reduce((all, line) => all + Number(line.slice(line.lastIndexOf(' ') + 1)), 0),
      sum(({ held }) => held),
    ),
  )

  const { traceEvents } = JSON.parse(exported('trace-events', 'held').stdout) as {
    traceEvents: { name: string; ph: string; ts: number; args?: Record<string, number> }[]
  }
  t.true(traceEvents.every(({ ts }) => Number.isInteger(ts) && ts >= 0))
  t.is(traceEvents.filter(({ ph, name }) => ph === 'i' && name === 'job').length, 20)
  t.true(traceEvents.some(({ ph, args }) => ph === 'C' && args!['held']! >= 2 ** 18))

  const [heading, ...rows] = exported('csv', 'held').stdout.trimEnd().split('\n')
  t.is(heading, 'file,line,function,stack,allocated,freed,live,blocks,held,outside,temporary')
  t.is(rows.length, table.rows.length)

  const peak = exported('collapsed', 'peak')
  t.is(peak.status, 0)
  const file = join(folder, 'out.json')
  t.is(obmalloc('export', '--to', 'speedscope', '-o', file, trace).status, 0)
  t.like(obmalloc('export', '--to', 'speedscope', '-o', file, trace), {
    status: 2,
    stderr: `obmalloc: ${file} is there already; --force replaces it\n`,
  })
  t.is(obmalloc('export', '--to', 'svg', trace).status, 2)
  t.is(obmalloc('export', trace).status, 2)
})

test('sizes that differ by little are told so that they do', (t) => {
  const trace = join(golden(), '3.12.trace')
  const { verdicts } = JSON.parse(obmalloc('budget', '--json', '--peak', '1G', trace).stdout) as Budget
  const { measured } = verdicts[0]!
  const words = (number: number): string => `${number.toString().replaceAll(/\B(?=(\d{3})+$)/g, ' ')} B`
  const { stdout } = obmalloc('budget', '--peak', `${measured - 1}`, trace)
  t.true(stdout.startsWith(`broken  peak: ${words(measured)} of at most ${words(measured - 1)}, 1 B over`), stdout)
})

test('a trace without stacks, time and marks is exported all the same', (t) => {
  const trace = join(golden(), '3.12.trace')
  t.regex(obmalloc('export', '--to', 'collapsed', '--at', 'event:60000', trace).stdout, /^\(no Python frame\) \d+\n$/)
  // What is told to do next is a command for a shell.
  for (const format of ['pprof', 'speedscope', 'collapsed', 'trace-events', 'csv']) {
    const { status, stderr } = obmalloc('export', '--to', format, trace)
    t.is(status, 0, stderr)
    t.regex(
      stderr,
      /^next: (go tool pprof|npx speedscope|flamegraph\.pl|(xdg-)?open|obmalloc why) [^ ]+( # .*| > flame\.svg| FILE)?$/m,
      format,
    )
  }
})
