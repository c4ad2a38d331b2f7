/** The other settings that were tried on the recording, and their results. */

import type { WhatIfRow } from '../../report-data.ts'
import { el, exact, size, type Child } from '../dom.ts'
import { change, count } from '../words.ts'
import { type Report, section, type View } from './section.ts'

const KINDS = [
  ['exact', 'Exact', 'the same requests through this allocator with another setting, block for block'],
  ['model', 'Model', 'what would be if the program were changed; the changed program may ask for something else'],
  ['measured', 'Measured', 'another allocator, loaded into a process and driven by the recording: resident size, not arenas'],
] as const

export function whatIf({ data }: Report): View {
  const { whatIf: rows, why } = data
  const lead = 'Other settings, tried on this recording. The three kinds are not to be compared with each other.'
  if (rows.length === 0)
    return section(
      'what-if',
      'What if',
      'Other settings can be tried on this recording. Nothing was tried yet:',
      el('p', {}, el('code', { class: 'command' }, `obmalloc what-if ${why.trace.path}`)),
    )
  const most = rows.reduce((sum, row) => Math.max(sum, row.held ?? 0), 1)
  const head = (text: string, about: string) => el('th', { scope: 'col', title: about }, text)
  return section(
    'what-if',
    'What if',
    lead,
    el(
      'div',
      { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'What if' },
      el(
        'table',
        { class: 'wide' },
        el(
          'thead',
          {},
          el(
            'tr',
            {},
            head('tried', ''),
            head('held', 'At the moment'),
            head('', ''),
            head('difference', 'To what was recorded'),
            head('at the peak', 'Most that was held'),
            head('lost', 'Held, and not live'),
            head('taken', 'Calls that take memory from the system'),
            head('given back', 'Calls that give memory back'),
            head('a call', 'Nanoseconds'),
            el('th', { scope: 'col', class: 'text', title: 'The setting that brings it about' }, 'how to get it'),
          ),
        ),
        ...KINDS.flatMap(([kind, title, about]) => {
          const some = rows.filter((row) => row.kind === kind)
          if (some.length === 0) return []
          return [
            el(
              'tbody',
              { 'data-kind': kind },
              el('tr', { class: 'kind' }, el('th', { scope: 'rowgroup', colspan: 10 }, title, el('small', {}, ` ${about}`))),
              ...some.map((row) => line(row, most)),
            ),
          ]
        }),
      ),
    ),
  )
}

function line(row: WhatIfRow, most: number): HTMLElement {
  const fill = el('span', { class: 'fill live' })
  fill.style.width = `${(100 * (row.held ?? 0)) / most}%`
  const cell = (value: number | null, show: (value: number) => Child) =>
    el('td', {}, value === null ? el('span', { class: 'faint' }, '–') : show(value))
  return el(
    'tr',
    { 'data-name': row.name },
    el('th', { scope: 'row' }, row.name),
    cell(row.held, size),
    el('td', { class: 'picture' }, fill),
    cell(row.difference, (value) => exact(value, value === 0 ? '0' : change(value))),
    cell(row.peakHeld, size),
    cell(row.lost, size),
    cell(row.maps, (value) => exact(value, count(value))),
    cell(row.unmaps, (value) => exact(value, count(value))),
    cell(row.nanoseconds, (value) => exact(value, `${value.toFixed(1)} ns`)),
    el('td', { class: 'text' }, row.setting === null ? '' : el('code', {}, row.setting)),
  )
}
