/** `obmalloc why`, `top` and `map`: each program of `seeing/` gets the answer that is true of it, in every CPython found. */

import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { inflateSync } from 'node:zlib'

import { Ajv } from 'ajv'
import test, { type ExecutionContext } from 'ava'

import { findInterpreters, type Interpreter } from '../dist/interpreters.js'
import { decode, pageOf } from '../dist/page.js'
import type { Column } from '../dist/report-data.js'
import { bytes } from '../dist/size.js'
import { golden } from '../dist/tools.js'
import { whatIf } from '../dist/what-if.js'
import { inquire, where, type Why } from '../dist/why.js'

const at = (path: string): string => fileURLToPath(new URL(path, import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'obmalloc-why-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

const { usable } = findInterpreters([])
const withPython = usable.length > 0 ? test.serial : test.skip
const isSchema = new Ajv().compile(JSON.parse(readFileSync(at('../schema/why-1.json'), 'utf8')) as object)

interface Result {
  readonly status: number
  readonly stdout: string
  readonly stderr: string
}

function obmalloc(...args: string[]): Promise<Result> {
  return new Promise((done) => {
    const options = { cwd: folder, maxBuffer: 1 << 28 }
    execFile(process.execPath, [at('../dist/cli.js'), ...args], options, (error, stdout, stderr) => {
      done({ status: error === null ? 0 : Number(error.code), stdout, stderr })
    })
  })
}

/** Records a program of `seeing/`; gives the trace's path. */
async function record(
  { path, version }: Interpreter,
  name: string,
  options: string[] = [],
  args: string[] = [],
): Promise<string> {
  const trace = join(folder, `${[name, version, ...args].join('-')}.trace`)
  const result = await obmalloc('record', '--python', path, '-o', trace, ...options, '--', at(`seeing/${name}.py`), ...args)
  if (result.status !== 0) throw new Error(result.stderr)
  return trace
}

/** Returns the answer and `why`'s exit code, and checks that the figures of the answer add up. */
async function why(t: ExecutionContext, trace: string, ...options: string[]): Promise<{ why: Why; status: number | null }> {
  const { status, stdout, stderr } = await obmalloc('why', '--json', trace, ...options)
  const answer = JSON.parse(stdout || stderr) as Why
  t.true(isSchema(answer), JSON.stringify(isSchema.errors))
  const { totals, verified, sites } = answer
  t.is(totals.live + totals.freeInPools + totals.freePools + totals.rounding, totals.held)
  const sum = (of: (site: Why['sites'][number]) => number): number => sites.reduce((all, site) => all + of(site), 0)
  t.deepEqual(
    [sum((site) => site.held), sum((site) => site.live), sum((site) => site.blocks)],
    [totals.held, totals.live, totals.blocks],
  )
  t.deepEqual([sum((site) => site.raw), sum((site) => site.large)], [totals.raw, totals.large])
  t.is(answer.pinned.bytes, totals.held - totals.needed)
  t.is(verified.matched, verified.addresses)
  t.true(verified.addresses > 10_000)
  for (const { rule, text, saves } of answer.findings.filter(({ rule }) => rule === 'pinned' || rule === 'half-empty')) {
    const words = saves === 0 ? 'does not help' : saves * 4 >= totals.held ? 'helps' : 'helps little'
    t.is(/\nWhat (.*?):/.exec(text)?.[1] ?? 'does not help', words, `${rule}: ${text}`)
  }
  return { why: answer, status }
}

const rules = ({ findings }: Why): string[] => findings.map(({ rule }) => rule)

/** The lines of sites' innermost frames in the program's own file. */
function lines({ sites }: Why, which: readonly number[], file: string): number[] {
  const found = which.map((site) => sites[site]!.stack.find((frame) => basename(frame.file) === file)?.line)
  return [...new Set(found.filter((line) => line !== undefined))].toSorted((a, b) => a - b)
}

for (const interpreter of usable) {
  const { version } = interpreter
  const of = (name: string, ...expected: string[]): void => {
    test.serial(`${version}: ${name} is told ${expected.join(', ')}`, async (t) => {
      const answer = await why(t, await record(interpreter, name))
      t.deepEqual(rules(answer.why), expected, JSON.stringify(answer.why.findings))
      t.is(answer.status, expected[0] === 'live' ? 0 : 1)
    })
  }
  // Before 3.10 a pool is one page, and nothing of it can go back.
  const hasLargePools = Number(version.split('.')[1]) >= 10
  of('frag', 'pinned', ...(hasLargePools ? ['trim'] : []))
  of('leak', 'grows')
  of('needed', 'live', 'large')
  of('peak', 'peak')
  of('half', 'half-empty')

  test.serial(
    `${version}: the survivors' lines and the burst's are named, and making them anew gives what was foretold`,
    async (t) => {
      const before = (await why(t, await record(interpreter, 'slots'))).why
      const [pinned] = before.findings
      t.is(pinned!.rule, 'pinned')
      // Line 14, `[Row(n) for n in …]`, makes the row and its number. Line 10, in `__init__`, makes its text.
      t.deepEqual(lines(before, pinned!.sites, 'slots.py'), [10, 14])
      t.deepEqual(lines(before, pinned!.burst, 'slots.py'), [10, 14])
      t.true(
        before.arenas.filter(({ pinnedBy }) => pinned!.sites.some((site) => pinnedBy.some((by) => by.site === site))).length >=
          before.pinned.arenas,
      )
      const foretold = Number(/gives (\d+) arenas? \(tried on this recording\)/.exec(pinned!.text)?.[1])
      const { totals } = (await why(t, await record(interpreter, 'slots', [], ['anew']))).why
      t.true(
        Math.abs(totals.arenas - foretold) <= 1,
        `foretold ${foretold}, but there are ${totals.arenas}, of ${before.totals.arenas} before`,
      )
      t.is(pinned!.saves, (before.totals.arenas - foretold) * (before.totals.held / before.totals.arenas))
      // The collector reaches each row that is kept, its number and its text. So their types are known.
      const counts = Object.fromEntries(pinned!.types!.map(({ name, blocks }) => [name, blocks]))
      const most = Math.max(...Object.values(counts))
      for (const name of ['__main__.Row', 'int', 'str']) t.true(counts[name]! > 0.98 * most, JSON.stringify(counts))
      t.regex(pinned!.text, / blocks: ([\d,]+ `(Row|int|str)`(, |\.)){3}/)
      for (const { types, blocks, live } of before.sites) {
        t.true(types!.reduce((sum, type) => sum + type.blocks, 0) <= blocks)
        t.true(types!.reduce((sum, type) => sum + type.bytes, 0) <= live)
      }
      // No block can have lived longer than the recording took.
      const [, percent, number, unit] =
        /; ([\d.]+) % of those (?:died|have died, [\d.]+ %) within ([\d.]+) (m?s)/.exec(pinned!.text) ?? []
      t.true(Number(percent) > 95, pinned!.text)
      const within = Number(number) / (unit === 'ms' ? 1000 : 1)
      t.true(within > 0.005 && within <= before.trace.seconds! * 1.25 + 0.001, pinned!.text)
    },
  )

  test.serial(`${version}: lines with few of the survivors are named too, if they would keep the arenas`, async (t) => {
    const before = (await why(t, await record(interpreter, 'pairs'))).why
    const [pinned] = before.findings
    t.is(pinned!.rule, 'pinned')
    t.deepEqual(lines(before, pinned!.sites, 'pairs.py'), [9, 10])
    const foretold = Number(/What helps.*: .* gives (\d+) arenas? \(tried on this recording\)/.exec(pinned!.text)?.[1])
    const { totals } = (await why(t, await record(interpreter, 'pairs', [], ['anew']))).why
    t.true(Math.abs(totals.arenas - foretold) <= 1, `foretold ${foretold}, but there are ${totals.arenas}`)
  })

  test.serial(
    `${version}: making anew what CPython keeps dead ones of gives what was foretold, between collections`,
    async (t) => {
      for (const kind of ['tuples', 'dicts', 'objects']) {
        const before = (await why(t, await record(interpreter, 'kinds', [], [kind]))).why
        const [pinned] = before.findings
        t.is(pinned!.rule, 'pinned')
        t.regex(pinned!.text, /What helps: .*, if gc\.collect\(\) is called before and after/)
        const foretold = Number(/gives (\d+) arenas? \(tried on this recording\)/.exec(pinned!.text)?.[1])
        // If dead objects may be among the survivors, the answer also gives the lowest possible number of arenas.
        const atLeast = Number(/ perhaps fewer, down to (\d+): /.exec(pinned!.text)?.[1] ?? foretold)
        const { totals } = (await why(t, await record(interpreter, 'kinds', [], [kind, 'anew']))).why
        t.true(
          totals.arenas >= atLeast - 1 && totals.arenas <= foretold + 1,
          `${kind}: foretold ${atLeast} to ${foretold}, but there are ${totals.arenas}, of ${before.totals.arenas} before`,
        )
      }
    },
  )

  test.serial(`${version}: a burst that is not the survivors' own is named too`, async (t) => {
    const answer = (await why(t, await record(interpreter, 'cache'))).why
    const pinned = answer.findings.find(({ rule }) => rule === 'pinned')
    t.truthy(pinned, JSON.stringify(answer.findings))
    t.true(lines(answer, pinned!.sites, 'cache.py').includes(10))
    t.regex(pinned!.text, /, most from [^;]*\(cache\.py:6\)/)
  })

  test.serial(`${version}: what C's malloc has and keeps is told`, async (t) => {
    const { why: answer, status } = await why(t, await record(interpreter, 'large'))
    const large = answer.findings.find(({ rule }) => rule === 'large')
    t.truthy(large, JSON.stringify(answer.findings))
    t.true(answer.totals.large > 4e6)
    t.deepEqual(lines(answer, large!.sites, 'large.py'), [2])
    // The C library may keep freed memory or give it back. The sample after the last event tells which.
    const { resident, unexplained } = answer.totals
    t.is(status, resident! > 50e6 ? 1 : 0)
    t.is(large!.saves > 50e6, resident! > 50e6, JSON.stringify(answer.totals))
    t.is(unexplained! > 50e6, resident! > 50e6, JSON.stringify(answer.totals))
    // No replay can try that.
    t.notRegex(large!.text, /What helps/)
    if (!large!.text.includes('Not tried: ctypes.CDLL(None).malloc_trim(0)')) return
    const { why: trimmed } = await why(t, await record(interpreter, 'large', [], ['trimmed']), '--at', 'mark:trimmed')
    t.true(trimmed.totals.resident! < resident! - 0.75 * large!.saves, JSON.stringify([answer.totals, trimmed.totals]))
    t.true(
      trimmed.findings.every(({ rule, saves }) => rule !== 'large' || saves === 0),
      JSON.stringify(trimmed.findings),
    )
  })
}

withPython('where all that is left may be dead, a collection is said to do, and does', async (t) => {
  const of = async (...words: string[]): Promise<Why> => (await why(t, await record(usable.at(-1)!, 'kinds', [], words))).why
  const said = ({ findings }: Why): string | undefined =>
    /If all of them are dead, gc\.collect\(\) alone gives (\d+) arenas?\./.exec(findings[0]!.text)?.[1]
  const dead = await of('tuples', 'dead')
  t.is(dead.findings[0]!.rule, 'pinned')
  const { arenas } = (await of('tuples', 'collected')).totals
  t.true(Math.abs(arenas - Number(said(dead))) <= 1, `${arenas}: ${dead.findings[0]!.text}`)
  t.is(said(await of('tuples')), undefined, 'some are known to live')
})

test('a line that imports stands for what the import system asks for', (t) => {
  const frame = (file: string, line: number) => ({ file, line, function: 'f' })
  const [inner, outer] = [frame('<frozen importlib._bootstrap_external>', 1), frame('<frozen importlib._bootstrap>', 2)]
  const [library, own] = [frame('/usr/lib/python3.13/functools.py', 3), frame('/app/a.py', 4)]
  t.is(where([inner, outer, own]), 'f (a.py:4)')
  t.is(where([inner, outer, library, outer, own]), 'f (functools.py:3) < f (a.py:4)')
  t.is(where([inner, outer]), 'f (<frozen importlib._bootstrap_external>:1)')
})

withPython('arenas that come and go are told', async (t) => {
  for (const interpreter of usable) {
    const { why: answer } = await why(t, await record(interpreter, 'thrash'))
    t.true(rules(answer).includes('thrash'), `${interpreter.version}: ${rules(answer).join()}`)
    t.deepEqual(lines(answer, answer.findings[0]!.sites, 'thrash.py'), [4])
  }
})

withPython('nothing is said of lines where stacks are off', async (t) => {
  const { why: answer } = await why(t, await record(usable[0]!, 'frag', ['--stacks', '0'], ['none']))
  t.deepEqual(
    rules(answer).filter((rule) => rule !== 'trim'),
    ['pinned', 'cannot-tell'],
  )
  t.true(answer.sites.every(({ stack }) => stack.length === 0))
  t.notRegex(answer.findings[0]!.text, /frag\.py/)
})

withPython('where few blocks keep much, other arena sizes and allocators are tried', async (t) => {
  const trace = await record(usable.at(-1)!, 'slots')
  const { stdout } = await obmalloc('why', trace)
  const tried = stdout.split('\n').filter((line) => /^What (does not|helps, too): /.test(line))
  const { rows } = await whatIf(trace, { configurations: [256, 1024, 4096].map((kib) => ({ arena: kib * 1024 })) })
  const [recorded, ...others] = rows.filter(({ name }) => !name.startsWith('trimmed'))
  for (const { name, held } of others.filter(({ held }) => held !== recorded!.held)) {
    const line = tried.find((words) => words.startsWith(held <= 0.75 * recorded!.held ? 'What helps' : 'What does not'))
    t.true(line?.includes(`${name.replace('arenas of ', '')}: ${bytes(held)}`), `${name} ${held}: ${stdout}`)
  }
  // The lines on other settings stand below the advice.
  t.regex(stdout, /\nWhat helps: .*\nWhat does not: .*\n`obmalloc trim`/)
  t.regex(tried.join('\n'), /another allocator \(.*glibc [\d.]+ [KM]iB.* resident, pymalloc [\d.]+ [KM]iB, measured\)/)
  // Nothing is tried with `--json`, nor if the answer promises nothing.
  t.notRegex((await obmalloc('why', trace, '--json')).stdout, /another arena size/)
  t.notRegex((await obmalloc('why', trace, '--at', 'event:1000')).stdout, /another arena size/)
})

withPython('words, sites, arenas, tables and maps are of the same moment', async (t) => {
  const trace = await record(usable.at(-1)!, 'slots', [], ['twice'])
  const words = await obmalloc('why', trace, '--at', 'peak')
  t.regex(words.stdout, /are held for .* of live objects \(([\d,]+) of \1 addresses verified\)\./)
  t.regex(words.stdout, /\nnext: obmalloc \w+ .*\n$/)
  const { why: answer } = await inquire(trace, { at: 'peak' })
  const site = await obmalloc('why', trace, '--at', 'peak', '--site', 'slots.py:10')
  t.regex(site.stdout, /Row\.__init__|__init__/)
  const arena = await obmalloc('why', trace, '--at', 'peak', '--arena', answer.arenas[0]!.address)
  t.regex(arena.stdout, new RegExp(`^arena ${answer.arenas[0]!.address}, taken at event`))
  t.is((await obmalloc('why', trace, '--arena', '0x10')).status, 2)
  for (const by of ['site', 'function', 'file', 'class']) {
    const { rows } = JSON.parse((await obmalloc('top', trace, '--at', 'peak', '--by', by, '--json')).stdout) as {
      rows: Record<'held' | 'live' | 'allocated' | 'freed' | 'blocks', number>[]
    }
    const sum = (of: 'live' | 'allocated' | 'freed'): number => rows.reduce((all, row) => all + row[of], 0)
    t.is(sum('live'), answer.totals.live, by)
    t.true(sum('allocated') > sum('freed') && sum('freed') > 0)
    if (by !== 'class')
      t.is(
        rows.reduce((all, row) => all + row.held, 0),
        answer.totals.held,
        by,
      )
  }
  const csv = (await obmalloc('top', trace, '--csv')).stdout.split('\n')
  t.is(csv[0], 'name,allocated,freed,live,blocks,held,outside,temporary')
  t.is(csv[1]!.split(',').length, 8)
  const map = (await obmalloc('map', trace, '--at', 'peak')).stdout.split('\n')
  t.is(map.filter((line) => line.startsWith('0x')).length, answer.totals.arenas)
  const picture = join(folder, 'map.png')
  t.is((await obmalloc('map', trace, '--at', 'peak', '--png', picture)).status, 0)
  const bytes = readFileSync(picture)
  const [width, height, length] = [bytes.readUInt32BE(16), bytes.readUInt32BE(20), bytes.readUInt32BE(33)]
  t.is(inflateSync(bytes.subarray(41, 41 + length)).length, height * (1 + width * 3))
  t.is((await obmalloc('map', trace, '--png', picture)).status, 2, 'nothing is overwritten')
  t.is((await obmalloc('map', trace, '--png', picture, '-f')).status, 0)
})

withPython("the page's numbers are the answer's", async (t) => {
  const trace = await record(usable.at(-1)!, 'cache', [], ['page'])
  const { why: answer } = await inquire(trace)
  const page = await pageOf(trace)
  const { arenas, totals } = page.why
  t.deepEqual([arenas, totals], [answer.arenas, answer.totals])
  const numbers = (column: Column): number[] => Array.from(decode(column))
  const sum = (column: Column): number => numbers(column).reduce((all, value) => all + value, 0)
  const { held, live, blocks, parent } = page.stacks
  t.deepEqual([sum(held), sum(live), sum(blocks)], [totals.held, totals.live, totals.blocks])
  const above = numbers(parent)
  t.true(
    above.every((node, index) => node === 0xffffffff || node < index),
    'a parent stands before its children',
  )
  const pools = numbers(page.map.class)
  t.is(pools.length, arenas.length * page.map.poolsPerArena)
  t.is(
    pools.filter((kind) => kind < 254).length,
    arenas.reduce((all, arena) => all + arena.pools, 0),
  )
  t.is(
    pools.filter((kind) => kind === 255).length,
    arenas.reduce((all, arena) => all + arena.freePools, 0),
  )
  t.true(Math.max(...numbers(page.timeline.held)) >= totals.held)
})

test.serial('older traces have no time and no samples, and are answered', async (t) => {
  const { why: answer } = await why(t, join(golden(), '3.12.trace'))
  t.is(answer.totals.resident, null)
})

withPython('an answer never says that more blocks died than there were, also where arenas are taken again', async (t) => {
  const { why: answer } = await why(t, await record(usable.at(-1)!, 'requests'))
  const [pinned] = answer.findings
  t.is(pinned!.rule, 'pinned')
  const shares = [...pinned!.text.matchAll(/([\d.]+) %/g)].map(([, share]) => Number(share))
  t.true(shares.length > 0 && shares.every((share) => share <= 100), pinned!.text)
})

withPython('the burst that is told is the one that the arenas were last full of', async (t) => {
  // The peak is in the first of eight bursts, and the arenas of that one have been given back.
  const { why: answer } = await why(t, await record(usable.at(-1)!, 'bursts'))
  const [pinned] = answer.findings
  t.is(pinned!.rule, 'pinned')
  t.deepEqual(lines(answer, pinned!.burst, 'bursts.py'), [6])
  const others = Number(/They were made among ([\d,]+) others/.exec(pinned!.text)?.[1]?.replaceAll(',', ''))
  t.true(others > 30_000 && others < 150_000, pinned!.text)
})

withPython('live memory is said to be needed, unless a collection would free it', async (t) => {
  const trace = await record(usable.at(-1)!, 'cycles')
  const { why: before } = await why(t, trace, '--at', 'mark:before')
  const [live] = before.findings
  t.is(live!.rule, 'live')
  t.regex(live!.text, /The program needs it, unless it is garbage in cycles, which gc\.collect\(\) would free\.$/)
  const { why: after } = await why(t, trace, '--at', 'mark:after')
  t.true(after.totals.live < 0.5 * before.totals.live, JSON.stringify([before.totals, after.totals]))
})

withPython('what an import makes in the middle of a burst is not what pins the arenas', async (t) => {
  const { why: answer } = await why(t, await record(usable.at(-1)!, 'imports'))
  const [pinned] = answer.findings
  t.is(pinned!.rule, 'pinned')
  t.deepEqual(lines(answer, pinned!.sites, 'imports.py'), [6], pinned!.text)
  t.regex(pinned!.text, /^[\d,]+ blocks \([^)]*\) from [^,]* \(imports\.py:6\) pin /)
})

withPython("what C's malloc has is named, also where small blocks pin arenas, and what is looked at next shows it", async (t) => {
  const program = join(folder, 'emptied.py')
  writeFileSync(
    program,
    [
      'table = {}',
      'for n in range(400_000):',
      '    table[n] = n',
      'for n in list(table):',
      '    if n % 1000: del table[n]',
      '',
    ].join('\n'),
  )
  const trace = join(folder, 'emptied.trace')
  await obmalloc('record', '--python', usable.at(-1)!.path, '-o', trace, '--', program)
  const { stdout } = await obmalloc('why', trace)
  t.regex(stdout, /pin \d+ of \d+ arenas;/)
  t.regex(stdout, /\nC's malloc has more than a third of it all\. .* most from <module> \(emptied\.py:3\)\.\n/)
  t.regex(stdout, /alone {2}C's malloc {2}types\n {2}<module> \(emptied\.py:3\) .* \d+ MiB\n/)
  const site = (await obmalloc('why', trace, '--site', 'emptied.py:3')).stdout
  t.regex(site, /^0 blocks, 0 B live, 0 B held, in 0 arenas, alone in 0; \d+ MiB at C's malloc\n/)
  t.regex(site, /\nnext: obmalloc top \S+\n$/)
})

withPython('lines with few of the half-empty blocks are not named', async (t) => {
  const { why: answer } = await why(t, await record(usable.at(-1)!, 'half'))
  t.regex(answer.findings[0]!.text, /Most are from [^(]+\(half\.py:[\d, ]+\)\. /)
})

/** The answer to a program of some lines. */
async function whyOf(t: ExecutionContext, name: string, lines: string[]): Promise<{ why: Why; status: number | null }> {
  const [program, trace] = [join(folder, `${name}.py`), join(folder, `${name}.trace`)]
  writeFileSync(program, `${lines.join('\n')}\n`)
  await obmalloc('record', '--python', usable.at(-1)!.path, '-o', trace, '--', program)
  return why(t, trace)
}

withPython('half-empty pools of several sizes are added up, and the lines of the dead are named too', async (t) => {
  const { why: answer, status } = await whyOf(t, 'thirds', [
    'kept, gone = [], []',
    'for n in range(30_000):',
    '    kept.append(bytes(300 + n % 3 * 16))',
    '    gone.append(bytes(300 + n % 3 * 16))',
    'del gone',
  ])
  const [found] = answer.findings
  t.is(found!.rule, 'half-empty', found!.text)
  t.regex(found!.text, /^The pools of blocks of \d+, \d+ and \d+ bytes are (49|50) % empty: /)
  t.regex(found!.text, / Most are from <module> \(thirds\.py:3\)\. [\d,]+ blocks lay there too .* <module> \(thirds\.py:4\)\.$/m)
  t.deepEqual([lines(answer, found!.sites, 'thirds.py'), lines(answer, found!.burst, 'thirds.py')], [[3], [4]])
  t.is(status, 1)
  // New blocks fill the free ones, and the old ones leave others: nothing is won, and what is won by the line apart is told.
  t.is(found!.saves, 0)
  t.regex(found!.text, /\nWhat does not help: making these blocks anew gives \d+ arenas \(tried on this recording\), /)
  const { stdout } = await obmalloc('why', answer.trace.path)
  const foretold = /\nWhat helps: the blocks of thirds\.py:3 apart from the others, .* \((\d+) MiB, model\)\./.exec(stdout)?.[1]
  const apart = await whyOf(t, 'thirds_apart', [
    'kept, gone = [], []',
    'for n in range(30_000): kept.append(bytes(300 + n % 3 * 16))',
    'for n in range(30_000): gone.append(bytes(300 + n % 3 * 16))',
    'del gone',
  ])
  const { held, arenas } = apart.why.totals
  t.true(Math.abs(held - Number(foretold) * 2 ** 20) <= held / arenas, `${foretold} MiB, but ${held}: ${stdout}`)
  // The page's answer has the same words.
  const page = await obmalloc('report', '-f', '-o', join(folder, 'thirds.html'), answer.trace.path)
  t.true(page.stdout.includes(`(${foretold} MiB, model)`), page.stdout)
})

withPython('what is foretold of making the blocks of half-empty pools anew comes true', async (t) => {
  const third = ['blocks = [bytes(100) for _ in range(300_000)]', 'kept = blocks[::3]', 'del blocks']
  const { why: before } = await whyOf(t, 'third', third)
  const [found] = before.findings
  t.is(found!.rule, 'half-empty', found!.text)
  const foretold = Number(/\nWhat helps: .* gives (\d+) arenas? \(tried on this recording\)\./.exec(found!.text)?.[1])
  t.is(found!.saves, (before.totals.arenas - foretold) * (before.totals.held / before.totals.arenas))
  const { arenas } = (await whyOf(t, 'anew', [...third, 'kept = [bytes(bytearray(block)) for block in kept]'])).why.totals
  t.true(Math.abs(arenas - foretold) <= 1, `foretold ${foretold}, but there are ${arenas}`)
})

withPython("of what C's malloc keeps, the lines that made the dead blocks are named too", async (t) => {
  const { why: answer, status } = await whyOf(t, 'pages', [
    'pages, notes = [], []',
    'for n in range(2_000):',
    '    pages.append(bytes(10_000 + n))',
    '    if n % 20 == 0: notes.append(bytes(9_000))',
    'del pages',
  ])
  const [found] = answer.findings
  t.is(found!.rule, 'large', JSON.stringify(answer.findings))
  t.regex(found!.text, /keeps \d+ MiB of free memory\. .* Most of what was freed is from <module> \(pages\.py:3\)\.\n/)
  t.deepEqual(lines(answer, found!.burst, 'pages.py'), [3])
  t.true(lines(answer, found!.sites, 'pages.py').includes(4))
  t.is(status, 1)
})

withPython("a peak at C's malloc is told, though arenas never had much", async (t) => {
  const { why: answer, status } = await whyOf(t, 'buffers', ['data = [bytearray(1 << 20) for _ in range(40)]', 'del data'])
  const [found] = answer.findings
  t.is(found!.rule, 'peak', JSON.stringify(answer.findings))
  t.regex(
    found!.text,
    /^C's malloc had blocks of 4[01] MiB at most, at [\d.]+ s, made of temporaries: most were from <(?:module|listcomp)> \(buffers\.py:1\) and are gone\./,
  )
  t.is(status, 1)
  const then = await obmalloc('why', join(folder, 'buffers.trace'), ...found!.command.split(' ').slice(3))
  t.regex(then.stdout, /C's malloc has more than a third of it all\. .*\(buffers\.py:1\)/)
})

withPython("where most of what is resident is not Python's, that is said, and not that nothing is wrong", async (t) => {
  const { why: answer, status } = await whyOf(t, 'foreign', [
    'import ctypes',
    'libc = ctypes.CDLL(None)',
    'libc.malloc.restype = ctypes.c_void_p',
    'for _ in range(300): ctypes.memset(libc.malloc(100_000), 1, 100_000)',
  ])
  t.deepEqual(rules(answer), ['not-pythons'])
  t.regex(
    answer.findings[0]!.text,
    /^Python's allocators were not asked for most of what is resident: (2[89]|3\d) MiB are of C code/,
  )
  t.is(status, 0)
})

withPython('names stay in their line, whatever they are', async (t) => {
  const program = join(folder, 'odd.py')
  const code = "exec(compile('def f(): return [bytes(300) for _ in range(9000)]', 'new\\nli\\x1bne.py', 'exec')); kept = f()"
  writeFileSync(program, code)
  const trace = join(folder, 'odd.trace')
  await obmalloc('record', '--python', usable.at(-1)!.path, '-o', trace, '--', program)
  for (const command of [
    ['why'],
    ['top'],
    ['diff', `${trace}@event:1`],
    ['events', '--size', '333'],
    ['map', '--color', 'site'],
  ]) {
    const { stdout } = await obmalloc(...command, trace)
    t.regex(stdout, /new\?li\?ne\.py:1/, command[0])
  }
})

test.serial('what cannot be answered is said, and how the command ended', async (t) => {
  const trace = join(golden(), '3.12.trace')
  t.is((await obmalloc('why', trace, '--at', 'ende')).status, 2)
  t.is((await obmalloc('why', trace, '--at', 'mark:no')).status, 2)
  t.is((await obmalloc('why', trace, '--site', 'nowhere')).status, 2)
  const stackless = await obmalloc('why', trace, '--site', 'app.py:3')
  t.like(stackless, { status: 2, stderr: `obmalloc: expected a trace with stacks for a site, but ${trace} has none\n` })
  t.is((await obmalloc('top', trace, '--by', 'weight')).status, 2)
  t.is((await obmalloc('map', trace, '--color', 'red')).status, 2)
  writeFileSync(join(folder, 'no.trace'), 'no trace')
  t.is((await obmalloc('why', join(folder, 'no.trace'))).status, 3)
})
