/** The page of examples/browser, in a real browser. Any other message on the console is a failure. */

import { existsSync, readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { extname, join, normalize } from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'
import { chromium } from 'playwright-core'

import { executablePath, FLAGS } from './page/browser.ts'

const root = fileURLToPath(new URL('..', import.meta.url))
const KINDS: Record<string, string> = { '.html': 'text/html', '.mjs': 'text/javascript', '.wasm': 'application/wasm' }

const canTry = executablePath !== undefined && existsSync(join(root, 'dist', 'browser.mjs'))
const tried = canTry ? test : test.skip

tried('a heap in a browser allocates, frees, collects and refuses', async (t) => {
  const server = createServer(({ url = '/' }, answer) => {
    const path = join(root, normalize(new URL(url, 'http://localhost').pathname))
    if (!existsSync(path)) return answer.writeHead(404).end()
    return answer.writeHead(200, { 'content-type': KINDS[extname(path)] ?? 'text/plain' }).end(readFileSync(path))
  }).listen(0, '127.0.0.1')
  await new Promise((done) => server.once('listening', done))
  const browser = await chromium.launch({ ...(executablePath === undefined ? {} : { executablePath }), args: FLAGS })
  t.teardown(async () => {
    await browser.close()
    server.close()
  })
  const page = await browser.newPage({ viewport: { width: 1100, height: 700 } })
  const wrong: string[] = []
  page.on('console', (message) => wrong.push(message.text()))
  page.on('pageerror', (error) => wrong.push(error.stack ?? error.message))
  await page.goto(`http://127.0.0.1:${(server.address() as AddressInfo).port}/examples/browser/index.html`)
  await page.waitForSelector('body[data-ready]')
  const said = async (button: string): Promise<string> => {
    await page.click(`#${button}`)
    return (await page.textContent('#said')) ?? ''
  }
  const count = async (what: string): Promise<number> => Number.parseInt((await page.textContent(`#${what}`)) ?? '', 10)

  const before = await count('blocks')
  t.is(await said('allocate'), 'allocated 5000 blocks')
  t.is(await count('blocks'), before + 5000)
  const freed = Number(/^freed (\d+) blocks$/.exec(await said('free'))?.[1])
  t.is(await count('blocks'), before + 5000 - freed)
  t.is(await said('make'), 'each object of a ring is kept by the one before it')
  t.is(await count('objects'), 1000)
  const picture = process.env['OBMALLOC_PICTURE']
  if (picture) await page.screenshot({ path: picture })
  t.is(await said('collect'), 'collected 1000 objects')
  t.is(await count('objects'), 0)
  t.regex(await said('wrong'), /^MemoryFault ERR_DOUBLE_FREE: /)
  await page.selectOption('#release', '3.8')
  t.is(await count('blocks'), 0)
  t.is(await said('allocate'), 'allocated 5000 blocks')
  t.true((await count('arenas')) > 1)
  t.deepEqual(wrong, [])
})
