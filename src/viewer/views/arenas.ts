/** The arenas that cannot be given back, and the sites that keep each. */

import { el, exact, number } from '../dom.ts'
import { search } from '../dom.ts'
import { follow, go, look } from '../state.ts'
import { bar, table } from '../table.ts'
import { bytes, count, named, percent, plural, seconds } from '../words.ts'
import { arenaPanel } from './arena.ts'
import { type Report, section, type View } from './section.ts'

interface Row {
  readonly index: number
  readonly address: string
  readonly pools: number
  readonly freePools: number
  readonly blocks: number
  readonly live: number
  readonly born: number
  readonly site: string
  readonly sites: number
}

export function arenas(report: Report): View {
  const { why, map } = report.data
  const arenaSize = map.poolSize * map.poolsPerArena
  const all: Row[] = why.arenas.map((arena, index) => ({
    index,
    address: arena.address,
    pools: arena.pools,
    freePools: arena.freePools,
    blocks: arena.blocks,
    live: arena.live,
    born: arena.born,
    site: named(why.sites[arena.pinnedBy[0]?.site ?? -1]?.stack[0]),
    sites: arena.pinnedBy.length,
  }))
  const rows = table<Row>({
    label: 'Arenas',
    empty: 'No arena is like this.',
    sorted: (arenaSort) => go({ arenaSort }),
    chosen: ({ index }) => go({ arena: index === look().arena ? -1 : index }),
    columns: [
      {
        key: 'address',
        title: 'arena',
        about: 'Where it begins',
        width: '10.5rem',
        cell: (row) => el('code', {}, row.address),
        by: (row) => Number(row.address),
      },
      {
        key: 'site',
        title: 'kept by',
        about: 'The line that made most of its live blocks',
        width: 'minmax(12rem, 2fr)',
        cell: (row) =>
          el(
            'span',
            { title: row.site },
            row.site,
            row.sites > 1 && el('span', { class: 'faint' }, ` and ${row.sites - 1} more`),
          ),
        by: (row) => row.site,
      },
      {
        key: 'blocks',
        title: 'live blocks',
        about: 'Blocks in use: all of them must go before the arena can',
        width: '7rem',
        number: true,
        cell: (row) => number(row.blocks),
        by: (row) => row.blocks,
      },
      {
        key: 'share',
        title: 'in use',
        about: 'Bytes of live blocks, and their part of the arena',
        width: 'minmax(8rem, 1fr)',
        number: true,
        cell: (row) => bar(row.live / arenaSize, exact(row.live, `${bytes(row.live)} · ${percent(row.live / arenaSize)}`)),
        by: (row) => -row.live,
      },
      {
        key: 'freePools',
        title: 'free pools',
        about: 'Pools without a live block',
        width: '6.5rem',
        number: true,
        cell: (row) => exact(row.freePools, `${row.freePools} of ${row.pools + row.freePools}`),
        by: (row) => row.freePools,
      },
      {
        key: 'born',
        title: 'taken',
        about: 'When Python took it from the system',
        width: '6rem',
        number: true,
        cell: (row) => exact(row.born, report.clock.known ? seconds(report.clock.seconds(row.born)) : count(row.born)),
        by: (row) => row.born,
      },
    ],
  })
  const filter = search('Filter by address or line', (arenaFilter) => go({ arenaFilter }))
  const said = el('p', { class: 'range', role: 'status' })
  const panel = arenaPanel(report)
  const curve = el('p', { class: 'faint' })
  const half = why.greedy.find(([, gone]) => gone * 2 >= why.totals.arenas)
  if (half !== undefined)
    curve.replaceChildren(
      'The cheapest half: without ',
      number(half[0]),
      ` of the blocks, ${plural(half[1], 'arena')} could be given back.`,
    )

  follow(['arenaSort', 'arenaFilter', 'from', 'to', 'arena'], ({ arenaSort, arenaFilter, from, to, arena }) => {
    filter.show(arenaFilter)
    const words = arenaFilter.toLowerCase()
    const some = all.filter(
      (row) =>
        (from < 0 || (row.born >= from && row.born <= to)) &&
        (words === '' || row.address.includes(words) || row.site.toLowerCase().includes(words)),
    )
    rows.show(some, arenaSort, all[arena])
    said.replaceChildren(
      el('data', { value: some.length, 'data-shown': 'arenas' }, count(some.length)),
      ` of ${plural(why.totals.arenas, 'arena')}${from < 0 ? '' : ', taken in the chosen range'}`,
      all.length < why.totals.arenas ? `; ${count(all.length)} are in this page` : '',
      '. Choose one to see what lies in it.',
    )
  })
  return section(
    'arenas',
    'Pinned arenas',
    `An arena of ${bytes(arenaSize)} goes back to the system only when its last block is freed: the fewer live blocks, the more memory each of them keeps.`,
    curve,
    el('div', { class: 'tools' }, filter.element),
    said,
    rows.element,
    panel,
  )
}
