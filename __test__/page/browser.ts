/** A page in a real browser, where any request and any message on the console is a failure. */

import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

import test, { type ExecutionContext } from 'ava'
import { type Browser, type BrowserContextOptions, chromium, type Page } from 'playwright-core'

const PLACES = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome']
export const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--no-first-run',
]

export const executablePath = PLACES.find((place) => existsSync(place))
if (executablePath === undefined)
  process.stderr.write(`the page is not tried in a browser: there is no Chromium at ${PLACES.join(', ')}\n`)

let browser: Promise<Browser> | undefined
const folder = mkdtempSync(join(tmpdir(), 'obmalloc-page-'))
test.after.always(async () => {
  await (await browser)?.close()
  rmSync(folder, { recursive: true, force: true })
})

/** A page as a file; gives its address. */
export function put(name: string, html: string): string {
  const path = join(folder, name)
  writeFileSync(path, html)
  return pathToFileURL(path).href
}

export type Open = (address: string, hash?: string, options?: BrowserContextOptions) => Promise<Page>

/** A test in a browser; skipped where there is none. */
export function inBrowser(title: string, run: (t: ExecutionContext, open: Open) => Promise<void>): void {
  if (executablePath === undefined) return test.skip(title, (t) => t.pass())
  test.serial(title, async (t) => {
    const wrong: string[] = []
    const pages: Page[] = []
    browser ??= chromium.launch({ executablePath, args: FLAGS })
    const running = await browser
    await run(t, async (address, hash = '', options = {}) => {
      const page = await (await running.newContext({ viewport: { width: 1280, height: 900 }, ...options })).newPage()
      pages.push(page)
      page.on('console', (message) => wrong.push(`console: ${message.text()}`))
      page.on('pageerror', (error) => wrong.push(`error: ${error.stack ?? error.message}`))
      page.on('request', (request) => {
        if (request.url().split('#')[0] !== address) wrong.push(`request: ${request.url().slice(0, 200)}`)
      })
      await page.goto(address + hash)
      return page
    })
    t.deepEqual(wrong, [])
    for (const page of pages) await page.context().close()
  })
}

/** Opens a page that has data, and waits until it shows them. */
export async function ready(open: Open, address: string, hash = '', options: BrowserContextOptions = {}): Promise<Page> {
  const page = await open(address, hash, options)
  await page.waitForSelector('[data-ready]')
  return page
}

/** The exact numbers that stand in elements, in order. */
export async function numbers(page: Page, selector: string): Promise<number[]> {
  return page.locator(selector).evaluateAll((found) => found.map((one) => Number((one as HTMLDataElement).value)))
}

/** The rows of a table that are in the page, each its cells: numbers where they are exact, or else text. */
export async function cells(page: Page, label: string): Promise<(string | number)[][]> {
  return page.locator(`[role=grid][aria-label="${label}"] .line`).evaluateAll((lines) =>
    lines.map((line) =>
      [...line.children].map((cell) => {
        const exact = cell.querySelector('data')
        return exact === null ? (cell.textContent ?? '') : Number(exact.value)
      }),
    ),
  )
}

/** What the address will say, once it has been written. */
export async function hashOf(page: Page): Promise<string> {
  await page.waitForTimeout(400)
  return page.evaluate('location.hash')
}
