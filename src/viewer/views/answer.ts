/** The answer in words, and what the memory consists of as one bar. */

import type { Finding } from '../../report-data.ts'
import { type Child, el, exact, number, size } from '../dom.ts'
import { go, hash } from '../state.ts'
import { bytes, change, named, percent, plural } from '../words.ts'
import { type Report, section, type View } from './section.ts'

/** Most lines that a finding names. */
const MOST_LINKS = 4

interface Part {
  readonly name: string
  readonly value: number
  readonly className: string
  readonly about: string
  readonly view: string
}

export function answer({ data }: Report): View {
  const { why, summary } = data
  const { totals } = why
  const [headline, ...lines] = summary
  const all = why.findings
  // Do not repeat what the words above say.
  const others = all.filter(({ text }) => !summary.includes(text))
  const view = section(
    'answer',
    'Answer',
    null,
    el(
      'p',
      { class: 'headline' },
      ...said(headline ?? `${bytes(totals.held)} are held for ${bytes(totals.live)} of live objects.`),
    ),
    ...lines.map((line) => {
      const finding = all.find(({ text }) => text === line)
      return finding ? card(finding, why.sites) : el('p', { class: 'said' }, ...quoted(line))
    }),
    composition(parts(data)),
    glossary(data),
    findings(others, why.sites),
  )
  view.section.querySelector('.lead')!.remove()
  return view
}

function parts({ why: { totals } }: Report['data']): Part[] {
  const all: Part[] = [
    { name: 'live objects', value: totals.live, className: 'live', about: 'blocks that the program still uses', view: 'blocks' },
    {
      name: 'free, in used pools',
      value: totals.freeInPools,
      className: 'in-pools',
      about: 'free blocks beside live ones: only objects of the same size can use them',
      view: 'arenas',
    },
    {
      name: 'free pools',
      value: totals.freePools,
      className: 'pools',
      about: 'pools without a live block, in arenas that have others',
      view: 'map',
    },
    {
      name: 'rounding',
      value: totals.rounding,
      className: 'rounding',
      about: 'pool headers, ends of pools that fit no block, and what alignment takes',
      view: 'blocks',
    },
    {
      name: 'C’s malloc',
      value: totals.raw + totals.large,
      className: 'malloc',
      about: 'blocks above 512 bytes, and what Python asks of C directly; not in arenas',
      view: 'timeline',
    },
  ]
  const unexplained = totals.unexplained ?? 0
  // Free memory of C’s malloc need not be resident, so show no more of it than is left unexplained.
  const kept = Math.min(totals.heapFree ?? 0, unexplained)
  if (kept > 0)
    all.push({
      name: 'C’s malloc, free',
      value: kept,
      className: 'malloc-free',
      about: 'what C’s malloc has from the system, and no block is in',
      view: 'timeline',
    })
  if (unexplained > kept)
    all.push({
      name: 'not Python’s',
      value: unexplained - kept,
      className: 'other',
      about: 'resident memory that was not asked of Python’s allocators: code, stacks, and what extensions take themselves',
      view: 'sure',
    })
  return all.filter(({ value }) => value > 0)
}

function composition(all: readonly Part[]): HTMLElement {
  const total = all.reduce((sum, { value }) => sum + value, 0)
  const jump = (view: string) => (event: Event) => {
    event.preventDefault()
    go({ view })
    document.dispatchEvent(new Event('arrive'))
  }
  const stripe = el('div', { class: 'stripe', 'aria-hidden': 'true' })
  for (const { className, value, name, view } of all) {
    const piece = el('a', {
      class: className,
      href: `#view=${view}`,
      tabindex: -1,
      title: `${name}: ${bytes(value)}`,
      onclick: jump(view),
    })
    piece.style.flexGrow = String(value / total)
    stripe.append(piece)
  }
  return el(
    'figure',
    { class: 'composition' },
    el('figcaption', {}, 'What the memory consists of. Each part leads to where it is seen.'),
    stripe,
    el(
      'ul',
      { class: 'parts' },
      ...all.map(({ name, value, className, about, view }) =>
        el(
          'li',
          {},
          el('span', { class: `swatch ${className}`, 'aria-hidden': 'true' }),
          el('a', { href: `#view=${view}`, onclick: jump(view), 'data-part': className }, name),
          el('span', { class: 'figures' }, size(value), el('span', { class: 'faint' }, ` ${percent(value / total)}`)),
          el('small', {}, about),
        ),
      ),
    ),
  )
}

function glossary({ map, why }: Report['data']): HTMLElement {
  const arena = bytes(map.poolSize * map.poolsPerArena)
  const term = (word: string, text: string) => [el('dt', {}, word), el('dd', {}, text)]
  const { totals, pinned } = why
  return el(
    'details',
    { class: 'glossary' },
    el('summary', {}, 'How Python keeps memory, in five lines'),
    el(
      'dl',
      {},
      ...term('arena', `What Python takes from the system: ${arena} here. It goes back only when its last block is freed.`),
      ...term('pool', `A part of an arena, ${bytes(map.poolSize)}; all its blocks are of one size class.`),
      ...term('block', 'What an object of up to 512 bytes lives in. Larger ones come from C’s malloc.'),
      ...term('size class', 'Sizes are rounded up to multiples of 16; a pool serves one of them.'),
      ...term(
        'pinned',
        `Memory of arenas that could be given back if the same blocks lay packed: ${bytes(pinned.bytes)} of ${plural(pinned.arenas, 'arena')} here, of ${bytes(totals.held)} that are held.`,
      ),
    ),
  )
}

/** Names and commands, which stand in backticks. */
const quoted = (text: string): Child[] => text.split('`').map((part, index) => (index % 2 === 1 ? el('code', {}, part) : part))

/** Text in brackets is shown less bold. */
function said(line: string): Child[] {
  const [, words, aside, end] = /^(.*?)(\([^()]*\))([.]?)$/.exec(line) ?? []
  return words === undefined ? [line] : [words, el('span', { class: 'aside' }, `${aside}${end}`)]
}

function findings(some: readonly Finding[], sites: Report['data']['why']['sites']): HTMLElement | null {
  if (some.length === 0) return null
  return el('div', { class: 'findings' }, el('h3', {}, 'Also found'), ...some.map((finding) => card(finding, sites)))
}

function card({ rule, text, saves, command, sites: about, burst }: Finding, sites: Report['data']['why']['sites']): HTMLElement {
  const link = (site: number) =>
    el(
      'a',
      {
        href: hash({ view: 'blocks', site }),
        onclick: (event: Event) => {
          event.preventDefault()
          go({ view: 'blocks', site })
          document.dispatchEvent(new Event('arrive'))
        },
      },
      named(sites[site]?.stack[0]),
    )
  const links = (title: string, some: readonly number[]) => {
    const known = some.filter((site) => sites[site] !== undefined)
    if (known.length === 0) return null
    const rest = known.length > MOST_LINKS ? ` and ${known.length - MOST_LINKS} more` : ''
    return el(
      'span',
      { class: 'links' },
      el('span', { class: 'faint' }, `${title} `),
      ...known.slice(0, MOST_LINKS).map(link),
      rest,
    )
  }
  return el(
    'article',
    { class: 'finding', 'data-rule': rule },
    el('p', {}, ...quoted(text)),
    el(
      'p',
      { class: 'facts' },
      saves > 0 && el('span', { class: 'saves' }, 'would save ', exact(saves, bytes(saves))),
      links('made by', about),
      links('among blocks of', burst),
      command !== '' && el('code', { class: 'command' }, command),
    ),
  )
}

/** Short facts that stand in the page's head. */
export function facts({ data }: Report): HTMLElement {
  const { totals } = data.why
  const gap = totals.resident === null ? null : totals.resident - totals.held
  const fact = (name: string, value: HTMLElement) => el('div', {}, el('dt', {}, name), el('dd', {}, value))
  return el(
    'dl',
    { class: 'facts', title: gap === null ? '' : `resident beyond what is held: ${change(gap)}` },
    fact('held', size(totals.held)),
    fact('live', size(totals.live)),
    fact('needed', size(totals.needed)),
    fact('arenas', number(totals.arenas)),
  )
}
