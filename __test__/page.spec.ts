/** The page that `report` writes, in a real browser. */

import test from 'ava'
import type { Page } from 'playwright-core'

import { MOST_BYTES, page as html } from '../dist/report.js'
import type { Column, Frame, ReportData } from '../dist/report-data.js'
import { cells, hashOf, inBrowser, numbers, put, ready } from './page/browser.ts'
import { LARGE, SMALL, synthetic } from './page/synthetic.ts'

const data = synthetic(SMALL)
const small = put('small.html', html(data))
const NONE = 0xffffffff

function values(column: Column): ArrayLike<number> & Iterable<number> {
  const [[type, text]] = Object.entries(column) as [[string, string]]
  const bytes = Buffer.from(text, 'base64')
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)
  if (type === 'u8') return new Uint8Array(buffer)
  if (type === 'u16') return new Uint16Array(buffer)
  return type === 'u32' ? new Uint32Array(buffer) : new Float64Array(buffer)
}

const sum = (all: Iterable<number>) => [...all].reduce((a, b) => a + b, 0)
const close = (a: number, b: number) => Math.abs(a - b) <= 1e-6 * Math.max(1, Math.abs(a), Math.abs(b))
const nameOf = ({ file, line, function: name }: Frame) => {
  const parts = file.split('/')
  return `${name} (${parts.length > 3 ? `…/${parts.slice(-2).join('/')}` : file}:${line})`
}
/** Names and commands are set as code there. */
const set = (line: string): string => line.replaceAll('`', '')
const text = async (page: Page, selector: string) => (await page.locator(selector).first().textContent()) ?? ''

inBrowser('the answer says what the data says', async (t, open) => {
  const page = await ready(open, small)
  const { totals } = data.why
  t.is(await text(page, '.headline'), data.summary[0]!)
  t.deepEqual(
    await page.locator('#answer > .said, #answer > .finding > p:first-child').allTextContents(),
    data.summary.slice(1).map(set),
  )
  const parts: [string, number][] = [
    ['live', totals.live],
    ['in-pools', totals.freeInPools],
    ['pools', totals.freePools],
    ['rounding', totals.rounding],
    ['malloc', totals.raw + totals.large],
    ['malloc-free', totals.heapFree!],
    ['other', totals.unexplained! - totals.heapFree!],
  ]
  for (const [part, value] of parts) t.deepEqual(await numbers(page, `.parts li:has([data-part="${part}"]) data`), [value], part)
  t.deepEqual(await numbers(page, 'header .facts data'), [totals.held, totals.live, totals.needed, totals.arenas])
  t.deepEqual(
    await page.locator('.finding > p:first-child').allTextContents(),
    data.why.findings.map((finding) => set(finding.text)),
  )
  t.deepEqual(await page.locator('.finding > p:first-child code').allTextContents(), ['bytes', 'list'])
  t.deepEqual(await numbers(page, '.finding .saves data'), [data.why.findings[0]!.saves])
  for (const [part, view] of [
    ['live', 'blocks'],
    ['in-pools', 'arenas'],
    ['pools', 'map'],
    ['malloc', 'timeline'],
    ['other', 'sure'],
  ]) {
    await page.click(`.parts [data-part="${part}"]`)
    t.is(await text(page, 'nav [aria-current]'), await text(page, `#${view} h2`))
  }
})

inBrowser('the timeline says what the data says, at the moment and at a cursor', async (t, open) => {
  const page = await ready(open, small, '#view=timeline')
  const { timeline, arenaEvents } = data
  const { totals } = data.why
  const events = [...values(timeline.event)]
  const check = async (event: number) => {
    const row = events.findLastIndex((one) => one <= event)
    const resident = [...values(timeline.resident)].slice(0, row + 1).findLast((value) => !Number.isNaN(value))
    t.deepEqual(await numbers(page, '.readout data'), [
      resident,
      values(timeline.held)[row],
      values(timeline.live)[row],
      values(timeline.raw)[row]! + values(timeline.large)[row]!,
    ])
  }
  const atMoment = async () =>
    t.deepEqual(await numbers(page, '.readout data'), [totals.resident, totals.held, totals.live, totals.raw + totals.large])
  await atMoment()
  const at = [...values(arenaEvents.event)]
  await page.keyboard.press('ArrowLeft')
  await check(at.at(-1)!)
  t.is(await hashOf(page), `#view=timeline&at=${at.at(-1)}`)
  await page.keyboard.press('ArrowLeft')
  t.is(await hashOf(page), `#view=timeline&at=${at.at(-2)}`)
  await check(at.at(-2)!)
  await page.keyboard.press('ArrowRight')
  t.is(await hashOf(page), `#view=timeline&at=${at.at(-1)}`)
  await page.keyboard.press('Escape')
  await atMoment()
})

inBrowser('arenas are listed, sorted, filtered, and lead to what lies in them', async (t, open) => {
  const page = await ready(open, small, '#view=arenas')
  const { arenas, sites } = data.why
  const first = ({ pinnedBy }: (typeof arenas)[number]) => nameOf(sites[pinnedBy[0]!.site]!.stack[0]!)
  const row = (arena: (typeof arenas)[number]) => [
    arena.address,
    `${first(arena)}${arena.pinnedBy.length > 1 ? ` and ${arena.pinnedBy.length - 1} more` : ''}`,
    arena.blocks,
    arena.live,
    arena.freePools,
    arena.born,
  ]
  t.deepEqual(await numbers(page, '[data-shown=arenas]'), [arenas.length])
  await page.click('#arenas [role=columnheader] >> text=taken')
  await page.click('#arenas [role=columnheader] >> text=taken')
  const byBirth = arenas.toSorted((a, b) => a.born - b.born)
  const grid = page.locator('#arenas .grid')
  for (const top of [0, 2_000, 100_000]) {
    await grid.evaluate((element, to) => (element.scrollTop = to), top)
    await page.waitForTimeout(50)
    const shown = await cells(page, 'Arenas')
    const from = byBirth.findIndex(({ address }) => address === shown[0]![0])
    t.true(shown.length < 40, 'only rows that are seen are in the page')
    t.deepEqual(shown, byBirth.slice(from, from + shown.length).map(row))
  }
  const wanted = first(arenas[5]!)
  await page.fill('#arenas input[type=search]', wanted)
  t.deepEqual(await numbers(page, '[data-shown=arenas]'), [arenas.filter((arena) => first(arena) === wanted).length])
  await page.fill('#arenas input[type=search]', String(arenas[7]!.address))
  await page.click('#arenas .line')
  const panel = '#arenas .panel'
  t.is(await text(page, `${panel} h3`), `Arena ${arenas[7]!.address}`)
  t.deepEqual(await numbers(page, `${panel} > p data`), [arenas[7]!.blocks, arenas[7]!.live])
  t.deepEqual(
    await numbers(page, `${panel} summary data`),
    arenas[7]!.pinnedBy.map(({ blocks }) => blocks),
  )
  for (const { site } of arenas[7]!.pinnedBy) {
    const frames = page.locator(`${panel} details[data-site="${site}"] li b`)
    t.deepEqual(
      await frames.allTextContents(),
      sites[site]!.stack.map((frame) => frame.function),
    )
  }
  const { file, line } = sites[arenas[7]!.pinnedBy[0]!.site]!.stack[0]!
  if (data.sources[file]?.[line] !== undefined)
    t.is(await text(page, `${panel} details[open] .stack code`), data.sources[file][line])
})

/** Each node's value with all below it. */
function totalsOf(own: ArrayLike<number>): Float64Array {
  const parent = values(data.stacks.parent)
  const total = Float64Array.from({ length: own.length }, (_, node) => own[node]!)
  for (let node = own.length - 1; node > 0; node--) if (parent[node] !== NONE) total[parent[node]!]! += total[node]!
  return total
}

inBrowser('the flame graph sums to the data, however it is looked at', async (t, open) => {
  const page = await ready(open, small, '#view=flame')
  const canvas = page.locator('#flame canvas')
  for (const metric of ['held', 'live', 'peak', 'allocated', 'temporary'] as const) {
    await page.click(`#flame [data-value=${metric}]`)
    const own = values(data.stacks[metric])
    const total = async () => (await numbers(page, `[data-total=${metric}]`))[0]!
    t.true(close(await total(), sum(own)), metric)
    for (const how of ['invert', 'hide imports']) {
      await page.click(`#flame >> text=${how}`)
      t.true(close(await total(), sum(own)), `${metric}, ${how}`)
      await page.click(`#flame >> text=${how}`)
    }
    // The largest child of all, and its largest child: by keys.
    const totals = totalsOf(own)
    const parent = values(data.stacks.parent)
    const roots = [0, 1].sort((a, b) => totals[b]! - totals[a]!)
    const child = Array.from(own, (_, node) => node)
      .filter((node) => parent[node] === roots[0])
      .sort((a, b) => totals[b]! - totals[a]!)[0]!
    await canvas.focus()
    await page.keyboard.press('ArrowDown')
    await page.keyboard.press('ArrowDown')
    const [shown, itself] = await numbers(page, '#flame .detail p data')
    t.true(close(shown!, totals[child]!) && close(itself!, own[child]!), `${metric}: ${shown} is not ${totals[child]}`)
    t.is(await text(page, '#flame .detail h3'), nameOf(data.frames[values(data.stacks.frame)[child]!]!))
    await page.keyboard.press('Enter')
    t.regex(await hashOf(page), /node=\d+/)
    await page.keyboard.press('Escape')
    t.notRegex(await hashOf(page), /node=/)
  }
  await page.click('#flame [data-value=held]')
  const wanted = 'parse_'
  await page.fill('#flame input[type=search]', wanted)
  const [frame, parent] = [values(data.stacks.frame), values(data.stacks.parent)]
  let found = 0
  for (const [node, value] of [...values(data.stacks.held)].entries()) {
    let at = node
    while (at !== NONE && !data.frames[frame[at]!]!.function.includes(wanted)) at = parent[at]!
    if (at !== NONE) found += value
  }
  t.true(close((await numbers(page, '#flame .range data'))[1]!, found))
  await page.fill('#flame input[type=search]', 'no such name')
  t.regex(await text(page, '#flame .range'), /Nothing of that name/)
})

inBrowser('the heap map shows each pool in its colour, and each frame', async (t, open) => {
  const page = await ready(open, small, '#view=map')
  t.deepEqual(await numbers(page, '[data-shown=tiles]'), [data.why.arenas.length])
  const kinds = [...values(data.map.class)]
  const canvas = page.locator('#map canvas').first()
  // The pools of the first arena stand 8 pixels apart, which the picture of 142 arenas has room for.
  const pixels = await canvas.evaluate((one: HTMLCanvasElement) => [...one.getContext('2d')!.getImageData(0, 0, 64, 64).data])
  const painted = Array.from({ length: 64 }, (_, pool) => {
    const at = 4 * ((Math.floor(pool / 8) * 8 + 3) * 64 + (pool % 8) * 8 + 3)
    return pixels.slice(at, at + 4).join()
  })
  const free = new Set(painted.filter((_, pool) => kinds[pool] === 255))
  const used = new Set(painted.filter((_, pool) => kinds[pool] !== 255))
  t.is(free.size, 1)
  t.true(used.size > 0 && [...used].every((color) => !free.has(color)))
  const before = await canvas.screenshot()
  for (const color of ['class', 'age', 'site', 'fill']) {
    await page.click(`#map [data-value=${color}]`)
    const now = await canvas.screenshot()
    t.is(now.equals(before), color === 'fill', color)
  }
  await page.locator('#map input[type=range]').fill('30')
  t.deepEqual(await numbers(page, '[data-shown=frame]'), [values(data.play.arenas)[30]])
  await page.click('#map >> text=Back to the moment')
  t.deepEqual(await numbers(page, '[data-shown=tiles]'), [data.why.arenas.length])
  await page
    .locator('#map canvas')
    .first()
    .click({ position: { x: 80, y: 5 } })
  t.is(await text(page, '#map .panel h3'), `Arena ${data.why.arenas[1]!.address}`)
})

inBrowser('a line tells of what types its blocks are, where that is known', async (t, open) => {
  const page = await ready(open, small)
  const lines = page.locator('[role=grid][aria-label="Blocks by line"] .line')
  const order = data.why.sites.map((_, index) => index).toSorted((a, b) => data.why.sites[b]!.held - data.why.sites[a]!.held)
  const digits = (said: string) => said.replaceAll('\u202f', '')
  for (const isKnown of [true, false]) {
    const row = order.findIndex((index) => (index % 2 === 0) === isKnown)
    const { types, blocks, stack } = data.why.sites[order[row]!]!
    const said = `${types?.[0]!.blocks} Row, ${blocks - (types?.[0]!.blocks ?? 0)} unknown`
    await lines.nth(row).click()
    const panel = page.locator('#blocks .panel:not([hidden])')
    t.is(await panel.locator('h4').textContent(), nameOf(stack[0]!))
    t.deepEqual((await panel.locator('.said').allTextContents()).map(digits), isKnown ? [`Live at the moment: ${said}.`] : [])
    const title = (await lines.nth(row).locator('[title]').first().getAttribute('title')) ?? ''
    t.is(digits(title), isKnown ? `${nameOf(stack[0]!)}\n${said}` : nameOf(stack[0]!))
  }
})

inBrowser('blocks, what-if, difference and how sure say what the data says', async (t, open) => {
  const page = await ready(open, small)
  for (const { size, blocks, pools, live, free } of data.classes.filter((one) => one.pools > 0))
    t.deepEqual(await numbers(page, `[data-class="${size}"] data`), [blocks, pools, live, free], `size ${size}`)
  for (const [index, blocks] of data.ages.blocks.entries())
    t.deepEqual(await numbers(page, `[data-age="${index}"] data`), [blocks, data.ages.bytes[index]])
  t.deepEqual(
    (await cells(page, 'Blocks by line')).slice(0, 10),
    data.why.sites
      .toSorted((a, b) => b.held - a.held)
      .slice(0, 10)
      .map((site) => [nameOf(site.stack[0]!), site.blocks, site.live, site.held, site.arenasTouched, site.arenasPinnedAlone]),
  )
  for (const row of data.whatIf)
    t.deepEqual(
      await numbers(page, `[data-kind=${row.kind}] [data-name="${row.name}"] data`),
      [row.held, row.difference, row.peakHeld, row.lost, row.maps, row.unmaps, row.nanoseconds].filter((value) => value !== null),
      row.name,
    )
  const grown = ({ a, b }: NonNullable<ReportData['diff']>['sites'][number]) => (b?.held ?? 0) - (a?.held ?? 0)
  t.deepEqual(
    (await cells(page, 'Difference by line')).slice(0, 10).map((row) => row.slice(1, 4)),
    data
      .diff!.sites.toSorted((one, other) => grown(other) - grown(one))
      .slice(0, 10)
      .map((site) => [grown(site), site.a?.held ?? 0, site.b?.held ?? 0]),
  )
  t.deepEqual(await numbers(page, '.sure data'), [data.sure.matched, data.sure.addresses])
  const said = await text(page, '#sure')
  for (const part of [data.sure.python, data.sure.command.join(' '), data.sure.version, ...data.sure.notRecorded])
    t.true(said.includes(part), part)
})

inBrowser('what follows a range is what was made in it', async (t, open) => {
  const page = await ready(open, small, '#view=timeline')
  const box = (await page.locator('#timeline canvas').boundingBox())!
  await page.mouse.move(box.x + 200, box.y + 120)
  await page.mouse.down()
  await page.mouse.move(box.x + 500, box.y + 130, { steps: 4 })
  await page.mouse.up()
  const [, from, to] = /from=(\d+)&to=(\d+)/.exec(await hashOf(page))!.map(Number)
  t.true(from! > 0 && to! > from! && to! < data.why.trace.events)
  const { arenaEvents, map, classes, why } = data
  const within = (event: number) => event >= from! && event <= to!
  const taken = [...values(arenaEvents.event)].filter((event, index) => within(event) && values(arenaEvents.taken)[index])
  const given = [...values(arenaEvents.event)].filter((event, index) => within(event) && !values(arenaEvents.taken)[index])
  t.deepEqual(await numbers(page, '[data-range=taken]'), [taken.length])
  t.deepEqual(await numbers(page, '[data-range=given]'), [given.length])
  t.deepEqual(await numbers(page, '[data-shown=arenas]'), [why.arenas.filter(({ born }) => within(born)).length])
  const part = (event: number) => Math.floor((event * 255) / why.trace.events)
  const [born, pool, kinds] = [values(map.blocks!.born), values(map.blocks!.pool), values(map.class)]
  let [blocks, live, held] = [0, 0, 0]
  for (let block = 0; block < pool.length; block++) {
    if (born[block]! < part(from!) || born[block]! > part(to!)) continue
    blocks++
    live += classes[kinds[pool[block]!]!]!.size
    held += (map.poolSize * map.poolsPerArena) / why.arenas[Math.floor(pool[block]! / map.poolsPerArena)]!.blocks
  }
  t.true(blocks > 0 && blocks < pool.length)
  t.deepEqual(await numbers(page, '[data-range=blocks]'), [blocks])
  t.true(close((await numbers(page, '[data-total=held]'))[0]!, held))
  await page.click('#flame [data-value=live]')
  t.is((await numbers(page, '[data-total=live]'))[0], live)
  t.is(sum((await cells(page, 'Blocks by line')).map((row) => Number(row[1]))) > 0, true)
  await page.click('#flame [data-value=allocated]')
  t.regex(await text(page, '#flame .range'), /of the whole recording/)
  t.regex(await text(page, '#map .legend'), /made outside the range/)
  await page.click('#timeline >> text=Clear')
  t.deepEqual(await numbers(page, '[data-shown=arenas]'), [why.arenas.length])
})

inBrowser('an address shows the same view again', async (t, open) => {
  const page = await ready(open, small)
  await page.keyboard.press('5')
  await page.click('#map [data-value=age]')
  await page
    .locator('#map canvas')
    .first()
    .click({ position: { x: 80, y: 80 } })
  await page.click('#flame [data-value=live]')
  await page.click('#flame >> text=invert')
  await page.fill('#arenas input[type=search]', 'load')
  await page.click('#arenas [role=columnheader] >> text=live blocks')
  await page.keyboard.press('5')
  const hash = await hashOf(page)
  for (const said of ['view=map', 'color=age', 'arena=', 'flame=live', 'inverted=1', 'arenaFilter=load', 'arenaSort=-blocks'])
    t.true(hash.includes(said), `${said} in ${hash}`)
  const again = await ready(open, small, hash)
  const look = async (one: Page) => ({
    text: await one.locator('main section').allInnerTexts(),
    top: await one.locator('#map').evaluate((map) => Math.round(map.getBoundingClientRect().top)),
    marked: await one.locator('[aria-pressed=true], [aria-sort=descending]').allTextContents(),
  })
  const pictures = async (one: Page) =>
    one.locator('#flame canvas, #map canvas').evaluateAll((all) => all.map((canvas) => (canvas as HTMLCanvasElement).toDataURL()))
  // A picture that has the focus shows a cursor. So the focus moves elsewhere before the pictures are compared.
  for (const one of [again, page]) await one.locator('#map h2').focus()
  t.deepEqual(await look(again), await look(page))
  t.true((await pictures(again)).join() === (await pictures(page)).join())
  // The address changes while the page is open, as when a link is followed.
  await again.evaluate("location.hash = '#view=what-if&color=site'")
  await again.waitForTimeout(300)
  t.is(await text(again, 'nav [aria-current]'), 'What if')
  t.is(await again.locator('#map [data-value=site]').getAttribute('aria-pressed'), 'true')
})

inBrowser('everything can be reached and used by keys alone', async (t, open) => {
  const page = await ready(open, small)
  const titles = [
    'Answer',
    'Timeline',
    'Pinned arenas',
    'Flame graph',
    'Heap map',
    'Blocks at the moment',
    'What if',
    'Difference',
    'How sure',
  ]
  for (const [index, title] of titles.entries()) {
    await page.keyboard.press(String(index + 1))
    await page.waitForTimeout(60)
    t.is(await text(page, 'nav [aria-current]'), title)
    t.true(await page.locator(`main section:nth-of-type(${index + 1}) h2`).evaluate((one) => one === document.activeElement))
  }
  await page.keyboard.press('Shift+ArrowLeft')
  await page.keyboard.press('Shift+ArrowLeft')
  t.regex(await hashOf(page), /from=\d+&to=\d+/)
  await page.keyboard.press('z')
  t.regex(await hashOf(page), /zoomed=1/)
  await page.keyboard.press('Escape')
  t.notRegex(await hashOf(page), /from=|zoomed/)
  await page.keyboard.press('/')
  await page.keyboard.type('load')
  t.regex(await hashOf(page), /find=load/)
  await page.keyboard.press('Escape')
  // Tab reaches every control. Each has a name, and shows when it has the focus.
  await page.keyboard.press('1')
  const seen: string[] = []
  for (let step = 0; step < 120; step++) {
    await page.keyboard.press('Tab')
    const now = await page.evaluate(() => {
      const at = document.activeElement as HTMLElement
      if (at === document.body) return null
      const style = getComputedStyle(at)
      const label = at.getAttribute('aria-label') ?? (at as HTMLInputElement).labels?.[0]?.textContent ?? at.textContent
      return {
        kind: `${at.closest('section')?.id ?? 'page'} ${at.getAttribute('role') ?? at.localName}`,
        named: Boolean(label?.trim() || at.title),
        visible: style.outlineStyle !== 'none' && Number.parseFloat(style.outlineWidth) > 0,
      }
    })
    if (now === null) break
    t.true(now.named, `${now.kind} has no name`)
    t.true(now.visible, `${now.kind}: the focus cannot be seen`)
    seen.push(now.kind)
  }
  for (const kind of [
    'timeline img',
    'arenas grid',
    'arenas input',
    'flame img',
    'flame button',
    'map img',
    'map input',
    'blocks grid',
  ])
    t.true(seen.includes(kind), `${kind} in ${seen.join(', ')}`)
  await page.locator('#arenas .grid').focus()
  for (const key of ['ArrowDown', 'ArrowDown', 'Enter']) await page.keyboard.press(key)
  const second = (await cells(page, 'Arenas'))[1]![0]
  t.is(await text(page, '#arenas .panel h3'), `Arena ${second}`)
  await page.locator('#map canvas').first().focus()
  for (const key of ['ArrowRight', 'ArrowDown', 'Enter']) await page.keyboard.press(key)
  t.not(await text(page, '#map .panel h3'), `Arena ${second}`)
  await page.keyboard.press('?')
  t.true(await page.locator('dialog').isVisible())
  await page.keyboard.press('Escape')
  t.false(await page.locator('dialog').isVisible())
})

/** WCAG's contrast of two colours. */
function contrast(one: string, other: string): number {
  const light = (color: string) => {
    const [red, green, blue] = [1, 3, 5].map((at) => {
      const part = Number.parseInt(color.slice(at, at + 2), 16) / 255
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
    }) as [number, number, number]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
  }
  const [a, b] = [light(one), light(other)]
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
}

inBrowser('it is dark or light, as the system is or as was chosen', async (t, open) => {
  const pictures: Buffer[] = []
  for (const colorScheme of ['light', 'dark'] as const) {
    const page = await ready(open, small, '#view=map', { colorScheme })
    const style = (name: string) =>
      page.evaluate((one) => getComputedStyle(document.documentElement).getPropertyValue(`--${one}`).trim(), name)
    for (const name of ['text', 'soft', 'faint', 'accent', 'warn'])
      for (const ground of ['paper', 'raised'])
        t.true(contrast(await style(name), await style(ground)) >= 4.5, `${name} on ${ground}, ${colorScheme}`)
    for (const name of ['flame-own', 'flame-installed', 'flame-standard', 'flame-import', 'match'])
      t.true(contrast(await style(name), await style('on-flame')) >= 4.5, `${name}, ${colorScheme}`)
    pictures.push(await page.screenshot())
    await page.keyboard.press('t')
    await page.waitForTimeout(100)
    pictures.push(await page.screenshot())
    t.regex(await hashOf(page), colorScheme === 'light' ? /theme=dark/ : /theme=light/)
  }
  const [light, lightToDark, dark, darkToLight] = pictures as [Buffer, Buffer, Buffer, Buffer]
  t.false(light.equals(dark))
  t.true(light.equals(darkToLight) && dark.equals(lightToDark))
})

inBrowser('a narrow window shows all of it', async (t, open) => {
  const page = await ready(open, small, '#view=arenas&arena=3', { viewport: { width: 360, height: 700 } })
  t.is(await page.evaluate('document.documentElement.scrollWidth'), 360)
  const link = (await page.locator('nav [aria-current]').boundingBox())!
  t.true(link.x >= 0 && link.x + link.width <= 360)
})

inBrowser('nothing moves unasked', async (t, open) => {
  const page = await ready(open, small, '#view=flame', { reducedMotion: 'reduce' })
  const places = () =>
    page.locator('main section').evaluateAll((all) => all.map((one) => Math.round(one.getBoundingClientRect().top)))
  const before = await places()
  t.true(Math.abs(before[3]!) < 120, `the view is ${before[3]} pixels from the top`)
  await page.waitForTimeout(700)
  t.deepEqual(await places(), before)
  t.is(await page.evaluate('document.getAnimations().length'), 0)
})

inBrowser('names of a recording are text, whatever they hold', async (t, open) => {
  const evil = '</script><img src="x.png" onerror="alert(1)"><!--'
  const names = data.why.sites.map((site) => ({ ...site, stack: site.stack.map((frame) => ({ ...frame, function: evil })) }))
  const page = await ready(
    open,
    put(
      'names.html',
      html({ ...data, why: { ...data.why, sites: names }, summary: [evil], sure: { ...data.sure, command: ['python3', evil] } }),
    ),
    '#view=arenas&arena=2',
  )
  t.is(await text(page, '.headline'), evil)
  t.is(await page.locator('img').count(), 0)
})

inBrowser('a page without data, and one with damaged data, say so', async (t, open) => {
  const whole = html(data)
  const without = await open(put('without.html', whole.replace(/<script type="application.*?<\/script>/s, '')))
  t.regex(await text(without, 'main'), /no data/)
  const damaged = await open(put('damaged.html', whole.replace(/(id="data">.{2000}).{400}/s, '$1')))
  await damaged.waitForSelector('[role=alert]')
  t.regex(await text(damaged, '[role=alert]'), /cannot show its data/)
})

inBrowser('a recording of 10^8 events opens within 2 s, in 300 MB, and plays with frames of less than 8 ms', async (t, open) => {
  const bytes = html(synthetic(LARGE))
  t.true(bytes.length <= MOST_BYTES, `${bytes.length} bytes`)
  const address = put('large.html', bytes)
  // Other work on the machine can make the page slower, but not faster: the best attempt counts.
  const ATTEMPTS = 5
  const [opened, frames]: [number[], number[]] = [[], []]
  for (let attempt = 0; attempt < ATTEMPTS && !(Math.min(...opened) <= 2_000 && Math.min(...frames) < 8); attempt++) {
    const page = await ready(open, address)
    opened.push(await page.evaluate<number>("performance.getEntriesByName('ready')[0].startTime"))
    for (const key of '23456789') {
      await page.keyboard.press(key)
      await page.waitForTimeout(100)
    }
    const session = await page.context().newCDPSession(page)
    const heap = (await session.send('Runtime.getHeapUsage')) as { usedSize: number; backingStorageSize?: number }
    const held = heap.usedSize + (heap.backingStorageSize ?? 0)
    t.true(held <= 300e6, `${Math.round(held / 1e6)} MB`)
    await page.keyboard.press('5')
    await page.click('#map >> text=Play')
    await page.locator('#map button >> text=Pause').waitFor()
    await page.locator('#map button >> text=Play').waitFor({ timeout: 60_000 })
    const took = await page.evaluate<number[]>("performance.getEntriesByName('map frame').map(({ duration }) => duration)")
    frames.push(took.toSorted((a, b) => a - b)[took.length >> 1]!)
    await page.context().close()
    t.log(
      `${bytes.length} bytes, open in ${Math.round(opened.at(-1)!)} ms, heap ${Math.round(held / 1e6)} MB, frame ${frames.at(-1)!.toFixed(1)} ms`,
    )
  }
  t.true(Math.min(...opened) <= 2_000, `opened in ${opened.map(Math.round).join(', ')} ms`)
  t.true(Math.min(...frames) < 8, `frames of ${frames.map((one) => one.toFixed(1)).join(', ')} ms`)
})

test('a page that would be too large has fewer single blocks, of whole arenas, and says of how many', (t) => {
  const count = 1_000_000
  const noise = (width: number) =>
    Buffer.from(Uint8Array.from({ length: count * width }, () => Math.random() * 256)).toString('base64')
  const pools = Uint32Array.from({ length: count }, (_, block) => Math.floor(block / 120))
  const blocks = {
    shown: count,
    of: count,
    pool: { u32: Buffer.from(pools.buffer).toString('base64') },
    index: { u16: noise(2) },
    site: { u16: noise(2) },
    born: { u8: noise(1) },
  }
  const bytes = html({ ...data, map: { ...data.map, blocks } })
  t.true(bytes.length <= MOST_BYTES && bytes.length > MOST_BYTES / 4, `${bytes.length} bytes`)
})
