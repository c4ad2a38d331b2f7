/** `obmalloc report`: from a real recording to its page. */

import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

import test from 'ava'

import { findInterpreters } from '../dist/interpreters.js'
import type { ReportData } from '../dist/report-data.js'
import { golden } from '../dist/tools.js'
import { inBrowser, numbers, ready } from './page/browser.ts'

const cli = fileURLToPath(new URL('../dist/cli.js', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'obmalloc-report-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))
const { usable } = findInterpreters([])

function obmalloc(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...args], {
    encoding: 'utf8',
    cwd: folder,
    maxBuffer: 1 << 28,
  })
  return { status, stdout, stderr }
}

const PROGRAM = `class Row:
    def __init__(self, n):
        self.n = n
        self.text = 'row %d' % n


def load_rows(count):
    return [Row(n) for n in range(count)]


rows = load_rows(200_000)
kept = rows[::1000]
del rows
`
const program = join(folder, 'rows.py')
writeFileSync(program, PROGRAM)
// The file's date is old, because source newer than its recording is not shown.
utimesSync(program, 1, 1)

inBrowser('the page of a real recording shows what the answer says, in every release', async (t, open) => {
  if (usable.length === 0) t.pass('there is no CPython')
  for (const { path, version } of usable) {
    const trace = `rows-${version}.trace`
    t.is(obmalloc('record', '--python', path, '-o', trace, '--', program).status, 0, version)
    const written = obmalloc('report', '--json', trace)
    t.is(written.status, 1, `${version}: ${written.stderr}`)
    const data = JSON.parse(written.stdout) as ReportData
    t.true(data.why.totals.held > 4 * data.why.totals.needed, version)
    const page = await ready(open, pathToFileURL(join(folder, `${trace}.html`)).href)
    t.is(await page.locator('.headline').textContent(), data.summary[0]!)
    const { totals } = data.why
    t.deepEqual(await numbers(page, 'header .facts data'), [totals.held, totals.live, totals.needed, totals.arenas], version)
    // The parts add up to what is held.
    const parts = await numbers(page, '.parts li:has(.live, .in-pools, .pools, .rounding) data')
    t.is(
      parts.reduce((sum, part) => sum + part, 0),
      totals.held,
      version,
    )
    // The arena with fewest blocks is kept by lines of the program, which can be read.
    await page.locator('#arenas .line').first().click()
    const panel = await page.locator('#arenas .panel').innerText()
    t.regex(panel, /load_rows.*rows\.py:8|__init__.*rows\.py:[34]|<module>.*rows\.py:12/s, version)
    t.regex(panel, /rows = load_rows\(200_000\)|kept = rows\[::1000\]/, version)
    t.regex(await page.locator('#timeline .readout .when').innerText(), /\d (ms|s), event/, version)
  }
})

test('what is there is not overwritten, and source is left out where it is not wanted or has changed', (t) => {
  const trace = join(folder, 'golden.trace')
  writeFileSync(trace, readFileSync(join(golden(), '3.12.trace')))
  const page = join(folder, 'golden.trace.html')
  const first = obmalloc('report', trace)
  t.true(first.status === 0 || first.status === 1, first.stderr)
  t.regex(
    first.stdout,
    /MiB are held for .*\n(.*\n)*page: .*golden\.trace\.html, .*KiB\nnext: (xdg-)?open .*golden\.trace\.html\n$/,
  )
  const before = readFileSync(page)
  const again = obmalloc('report', trace)
  t.is(again.status, 2)
  t.regex(again.stderr, /golden\.trace\.html is there already; --force replaces it/)
  t.deepEqual(readFileSync(page), before)
  t.is(obmalloc('report', '--force', trace).status, first.status)
  t.is(obmalloc('report', '--sources', 'all', '-f', trace).status, 2)
  t.is(obmalloc('report', '--at', 'mark:none', '-o', 'none.html', trace).status, 2)
  t.is(obmalloc('report', 'missing.trace').status, 3)
})

const withPython = usable.length > 0 ? test : test.skip
withPython('lines of source are those of the recording, or none', (t) => {
  const changing = join(folder, 'changing.py')
  writeFileSync(changing, 'kept = [[n] for n in range(1000)]\n')
  utimesSync(changing, 1, 1)
  t.is(obmalloc('record', '--python', usable[0]!.path, '-o', 'changing.trace', '--', changing).status, 0)
  const sources = (...options: string[]) => {
    const { stdout, stderr } = obmalloc('report', '-f', '--json', ...options, 'changing.trace')
    return { lines: (JSON.parse(stdout) as ReportData).sources[changing], stderr }
  }
  t.deepEqual(sources().lines, { 1: 'kept = [[n] for n in range(1000)]' })
  t.is(sources('--sources', 'none').lines, undefined)
  writeFileSync(changing, 'something = "else"\n')
  utimesSync(changing, Date.now() / 1000 + 10, Date.now() / 1000 + 10)
  const { lines, stderr } = sources()
  t.is(lines, undefined)
  t.regex(stderr, /changed since the recording.*changing\.py/)
})

withPython('a relative path goes by the folder of the recording, wherever it is looked at', (t) => {
  const [here, elsewhere] = ['here', 'elsewhere'].map((name) => join(folder, name)) as [string, string]
  for (const [place, line] of [
    [here, 'kept = [[n] for n in range(1000)]'],
    [elsewhere, 'something = "else"'],
  ] as const) {
    mkdirSync(place)
    writeFileSync(join(place, 'near.py'), `${line}\n`)
    utimesSync(join(place, 'near.py'), 1, 1)
  }
  const of = (cwd: string, ...args: string[]) =>
    spawnSync(process.execPath, [cli, ...args], { cwd, encoding: 'utf8', maxBuffer: 1 << 28 })
  const trace = join(folder, 'near.trace')
  // The oldest release names a script as it stands on the command line.
  t.is(of(here, 'record', '--python', usable[0]!.path, '-o', trace, '--', 'near.py').status, 0)
  for (const cwd of [here, elsewhere]) {
    const { sources } = JSON.parse(of(cwd, 'report', '-f', '--json', trace).stdout) as ReportData
    const [lines] = Object.entries(sources).flatMap(([file, found]) => (file.endsWith('near.py') ? [found] : []))
    t.deepEqual(lines, { 1: 'kept = [[n] for n in range(1000)]' }, cwd)
  }
  // A budget names files of the repository that it is run in.
  const annotation = (cwd: string) =>
    /file=([^,]*),/.exec(of(cwd, 'budget', '--format', 'github', '--held', '0', trace).stdout)?.[1]
  t.is(annotation(here), 'near.py')
  t.is(annotation(elsewhere), join(here, 'near.py'))
})
