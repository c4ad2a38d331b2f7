/** The blocks at the moment: by size class, by age, by the line that made them. */

import { el, exact, number, search, size } from '../dom.ts'
import { madeInRange } from '../made.ts'
import { follow, go, look } from '../state.ts'
import { bar, table } from '../table.ts'
import { typesOf } from '../../type-counts.ts'
import { bytes, count, named, percent, plural, seconds } from '../words.ts'
import { type Report, section, type View } from './section.ts'
import { stackList } from './stack.ts'

export function blocks(report: Report): View {
  const { why } = report.data
  const range = el('p', { class: 'range', role: 'status' })
  follow(['from', 'to'], ({ from }) => {
    const made = madeInRange(report)
    range.hidden = from < 0
    if (made === null) range.textContent = from < 0 ? '' : 'Single blocks are not in this page: the range changes nothing here.'
    else
      range.replaceChildren(
        'Of them made in the chosen range: ',
        el('data', { value: made.blocks, 'data-range': 'blocks' }, count(made.blocks)),
        ` of ${bytes(made.live)}${made.sampled ? ', as far as single blocks are in this page' : ''}.`,
      )
  })
  return section(
    'blocks',
    'Blocks at the moment',
    `${plural(why.totals.blocks, 'block')} of ${bytes(why.totals.live)} live in arenas: their sizes, their ages, and the lines that asked for them.`,
    range,
    el('div', { class: 'halves' }, byClass(report), byAge(report)),
    bySite(report),
  )
}

function byClass(report: Report): HTMLElement {
  const classes = report.data.classes.flatMap((one, index) => (one.pools > 0 ? [{ ...one, index }] : []))
  const most = classes.reduce((sum, one) => Math.max(sum, one.live + one.free), 1)
  const body = el('tbody')
  follow(['from', 'to'], () => {
    const made = madeInRange(report)
    body.replaceChildren(
      ...classes.map(({ size: bytesEach, pools, blocks: some, live, free, index }) => {
        const lives = el('span', { class: 'fill live' })
        lives.style.width = `${(100 * live) / most}%`
        const frees = el('span', { class: 'fill in-pools' })
        frees.style.width = `${(100 * free) / most}%`
        return el(
          'tr',
          { 'data-class': bytesEach },
          el('th', { scope: 'row' }, `${bytesEach} B`),
          el('td', {}, number(made ? made.classes[index]! : some)),
          el('td', {}, number(pools)),
          el('td', {}, size(live)),
          el('td', {}, size(free)),
          el('td', { class: 'picture', title: `${percent(live / (live + free || 1))} of these pools is in use` }, lives, frees),
        )
      }),
    )
  })
  const head = (text: string, about: string) => el('th', { scope: 'col', title: about }, text)
  return el(
    'div',
    {},
    el('h3', {}, 'By size class'),
    el(
      'div',
      { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Blocks by size class' },
      el(
        'table',
        {},
        el(
          'thead',
          {},
          el(
            'tr',
            {},
            head('size', 'Bytes of a block'),
            head('blocks', 'Live blocks'),
            head('pools', 'Pools of this class'),
            head('live', 'Bytes in use'),
            head('free', 'Bytes free in these pools'),
            head('', 'In use, and free beside it'),
          ),
        ),
        body,
      ),
    ),
  )
}

function byAge({ data, clock }: Report): HTMLElement {
  const { edges, blocks: counts, bytes: sizes } = data.ages
  const most = counts.reduce((a, b) => Math.max(a, b), 1)
  return el(
    'div',
    {},
    el('h3', {}, 'By age'),
    counts.length === 0 || !clock.known
      ? el('p', { class: 'faint' }, 'Not known: this recording has no time.')
      : el(
          'div',
          { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Blocks by age' },
          el(
            'table',
            {},
            el(
              'thead',
              {},
              el(
                'tr',
                {},
                el('th', { scope: 'col' }, 'made'),
                el('th', { scope: 'col' }, 'blocks'),
                el('th', { scope: 'col' }, 'bytes'),
                el('th'),
              ),
            ),
            el(
              'tbody',
              {},
              ...counts.map((some, index) => {
                const fill = el('span', { class: 'fill live' })
                fill.style.width = `${(100 * some) / most}%`
                const [from, to] = [edges[index] ?? 0, edges[index + 1]]
                return el(
                  'tr',
                  { 'data-age': index },
                  el(
                    'th',
                    { scope: 'row' },
                    to === undefined ? `${seconds(from)} ago or more` : `${seconds(from)} to ${seconds(to)} ago`,
                  ),
                  el('td', {}, number(some)),
                  el('td', {}, size(sizes[index] ?? 0)),
                  el('td', { class: 'picture' }, fill),
                )
              }),
            ),
          ),
        ),
  )
}

/** Most types that are named of a line. */
const TYPES_NAMED = 12

interface Row {
  readonly index: number
  readonly name: string
  /** The types of its live blocks at the moment, in words; empty if they are not known. */
  readonly types: string
  readonly blocks: number
  readonly live: number
  readonly held: number
  readonly arenas: number
  readonly alone: number
}

function bySite(report: Report): HTMLElement {
  const { why } = report.data
  const all: Row[] = why.sites.map((site, index) => ({
    index,
    name: named(site.stack[0]),
    types: typesOf(site, TYPES_NAMED, count),
    blocks: site.blocks,
    live: site.live,
    held: site.held,
    arenas: site.arenasTouched,
    alone: site.arenasPinnedAlone,
  }))
  const rows = table<Row>({
    label: 'Blocks by line',
    empty: 'No line is called so.',
    sorted: (siteSort) => go({ siteSort }),
    chosen: ({ index }) => go({ site: index === look().site ? -1 : index }),
    columns: [
      {
        key: 'name',
        title: 'made by',
        about: 'The innermost Python frame',
        width: 'minmax(12rem, 2fr)',
        cell: (row) => el('span', { title: row.types === '' ? row.name : `${row.name}\n${row.types}` }, row.name),
        by: (row) => row.name,
      },
      {
        key: 'blocks',
        title: 'blocks',
        about: 'Live blocks',
        width: '6rem',
        number: true,
        cell: (row) => number(row.blocks),
        by: (row) => row.blocks,
      },
      {
        key: 'live',
        title: 'live',
        about: 'Bytes of live blocks',
        width: '6.5rem',
        number: true,
        cell: (row) => size(row.live),
        by: (row) => row.live,
      },
      {
        key: 'held',
        title: 'share of held',
        about: 'Each arena’s bytes, divided among those who have live blocks in it',
        width: 'minmax(8rem, 1fr)',
        number: true,
        cell: (row) => bar(row.held / (why.totals.held || 1), exact(row.held, bytes(row.held))),
        by: (row) => row.held,
      },
      {
        key: 'arenas',
        title: 'arenas',
        about: 'Arenas that have a block of it',
        width: '5.5rem',
        number: true,
        cell: (row) => number(row.arenas),
        by: (row) => row.arenas,
      },
      {
        key: 'alone',
        title: 'alone',
        about: 'Arenas that only this line keeps',
        width: '5rem',
        number: true,
        cell: (row) => number(row.alone),
        by: (row) => row.alone,
      },
    ],
  })
  const filter = search('Filter lines', (siteFilter) => go({ siteFilter }))
  const open = el('div', { class: 'panel', hidden: true })
  const said = el('p', { class: 'faint' })
  follow(['siteSort', 'siteFilter', 'site', 'from', 'to'], ({ siteSort, siteFilter, site }) => {
    filter.show(siteFilter)
    const made = madeInRange(report)
    const now = made
      ? all.flatMap((row) =>
          made.sites.blocks[row.index]! > 0
            ? [
                {
                  ...row,
                  blocks: made.sites.blocks[row.index]!,
                  live: made.sites.live[row.index]!,
                  held: made.sites.held[row.index]!,
                },
              ]
            : [],
        )
      : all
    const words = siteFilter.toLowerCase()
    const some = words === '' ? now : now.filter(({ name }) => name.toLowerCase().includes(words))
    rows.show(
      some,
      siteSort,
      some.find(({ index }) => index === site),
    )
    said.textContent = `${plural(some.length, 'line')}${made ? ' with blocks of the chosen range' : ''}. A whole stack is one entry here: choose one to see it.`
    const one = why.sites[site]
    open.hidden = one === undefined
    if (one !== undefined)
      open.replaceChildren(
        el(
          'div',
          { class: 'tools' },
          el('h4', {}, named(one.stack[0])),
          el('button', { type: 'button', onclick: () => go({ site: -1 }) }, 'Close'),
        ),
        ...(all[site]!.types === '' ? [] : [el('p', { class: 'said' }, `Live at the moment: ${all[site]!.types}.`)]),
        stackList(report, one.stack),
      )
  })
  return el('div', {}, el('h3', {}, 'By line'), el('div', { class: 'tools' }, filter.element), said, rows.element, open)
}
