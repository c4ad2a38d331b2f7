/** Opens exports in speedscope's page, which comes from its own package, in a real browser. It also reads pprof's files and collapsed stacks. */

import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

import test from 'ava'
import { chromium } from 'playwright-core'

import { findInterpreters } from '../dist/interpreters.js'

const at = (path: string): string => fileURLToPath(new URL(path, import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'obmalloc-readers-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

const executablePath = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find((place) =>
  existsSync(place),
)
const { usable } = findInterpreters([])
const inBrowser = executablePath !== undefined && usable.length > 0 ? test : test.skip

function obmalloc(...args: string[]): Buffer {
  const { status, stdout, stderr } = spawnSync(process.execPath, [at('../dist/cli.js'), ...args], {
    cwd: folder,
    maxBuffer: 1 << 28,
  })
  if (status !== 0) throw new Error(stderr.toString())
  return stdout
}

inBrowser('speedscope reads three formats, and shows the bytes that top says', async (t) => {
  const trace = join(folder, 'lines.trace')
  obmalloc('record', '-o', trace, '--', '-c', 'def load():\n    return [str(n) * 3 for n in range(100000)]\nrows = load()')
  const { rows } = JSON.parse(obmalloc('top', '--json', '--by', 'function', trace).toString()) as {
    rows: { name: string; held: number }[]
  }
  // Up to 3.11 a list comprehension is a function of its own.
  const { held } = rows.find(({ name }) => /load.* \(<string>\)/.test(name) && !/module/.test(name))!
  t.true(held > 4e6)
  const inMegabytes = `${(held / 2 ** 20).toFixed(2)} MB`
  // A file of collapsed stacks does not name its unit.
  const shown = { speedscope: inMegabytes, pprof: inMegabytes, collapsed: held.toLocaleString('en-US') }
  const viewer = pathToFileURL(at('../node_modules/speedscope/dist/release/index.html')).href
  const browser = await chromium.launch({
    executablePath: executablePath!,
    args: ['--no-sandbox', '--allow-file-access-from-files'],
  })
  t.teardown(() => browser.close())
  for (const [format, expected] of Object.entries(shown)) {
    const data = obmalloc('export', '--to', format, '--what', 'held', trace).toString('base64')
    const script = join(folder, `${format}.js`)
    writeFileSync(script, `speedscope.loadFileFromBase64(${JSON.stringify(`rows.${format}`)}, ${JSON.stringify(data)})`)
    const page = await browser.newPage()
    const wrong: string[] = []
    page.on('pageerror', (error) => wrong.push(error.message))
    page.on('dialog', (dialog) => wrong.push(dialog.message()))
    page.on('request', (request) => {
      if (!/^(file|data|blob):/.test(request.url())) wrong.push(request.url())
    })
    await page.goto(`${viewer}#localProfilePath=${script}`)
    await page.getByText('Sandwich').click()
    // The columns of the table of functions: total bytes, bytes of the function itself, name.
    await page.locator('tr', { hasText: 'load' }).first().waitFor({ timeout: 20_000 })
    const lines = await page.locator('tr').allInnerTexts()
    t.true(
      lines.some((line) => line.includes(expected) && line.includes('load')),
      `${format}: ${expected}, ${lines.slice(0, 9).join()}`,
    )
    t.deepEqual(wrong, [], format)
    await page.close()
  }
})
