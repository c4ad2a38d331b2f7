/** What grew from one recording, or moment, to another. */

import type { Frame } from '../../report-data.ts'
import { el, exact, size } from '../dom.ts'
import { follow, go } from '../state.ts'
import { table } from '../table.ts'
import { change, count, named } from '../words.ts'
import { type Report, section, type View } from './section.ts'

interface Row {
  readonly name: string
  readonly stack: readonly Frame[]
  readonly before: number
  readonly after: number
  readonly blocks: number
}

export function diff({ data }: Report): View {
  const { diff: difference, why } = data
  if (difference === null)
    return section(
      'diff',
      'Difference',
      'This page is of one recording. Two of them, or two moments of one, are compared by:',
      el('p', {}, el('code', { class: 'command' }, `obmalloc diff OTHER.trace ${why.trace.path} --html difference.html`)),
    )
  const { a, b } = difference
  const all: Row[] = difference.sites.map((site) => ({
    name: named(site.stack[0]),
    stack: site.stack,
    before: site.a?.held ?? 0,
    after: site.b?.held ?? 0,
    blocks: (site.b?.blocks ?? 0) - (site.a?.blocks ?? 0),
  }))
  const rows = table<Row>({
    label: 'Difference by line',
    empty: 'Nothing differs.',
    sorted: (diffSort) => go({ diffSort }),
    columns: [
      {
        key: 'name',
        title: 'made by',
        about: 'The innermost Python frame',
        width: 'minmax(12rem, 2fr)',
        cell: (row) => el('span', { title: row.name }, row.name),
        by: (row) => row.name,
      },
      {
        key: 'grown',
        title: 'grown',
        about: 'Share of held: after, less before',
        width: '8rem',
        number: true,
        cell: (row) => exact(row.after - row.before, change(row.after - row.before)),
        by: (row) => row.after - row.before,
      },
      {
        key: 'before',
        title: 'before',
        about: a.path,
        width: '7rem',
        number: true,
        cell: (row) => size(row.before),
        by: (row) => row.before,
      },
      {
        key: 'after',
        title: 'after',
        about: b.path,
        width: '7rem',
        number: true,
        cell: (row) => size(row.after),
        by: (row) => row.after,
      },
      {
        key: 'blocks',
        title: 'blocks',
        about: 'Live blocks more, or fewer',
        width: '7rem',
        number: true,
        cell: (row) =>
          exact(row.blocks, `${row.blocks > 0 ? '+' : ''}${row.blocks < 0 ? `−${count(-row.blocks)}` : count(row.blocks)}`),
        by: (row) => row.blocks,
      },
    ],
  })
  follow(['diffSort'], ({ diffSort }) => rows.show(all, diffSort))
  return section(
    'diff',
    'Difference',
    `From ${a.path} to ${b.path}.`,
    el(
      'p',
      { class: 'range' },
      'Held: ',
      size(a.totals.held),
      ' before, ',
      size(b.totals.held),
      ' after. Live: ',
      size(a.totals.live),
      ' before, ',
      size(b.totals.live),
      ' after.',
    ),
    rows.element,
  )
}
