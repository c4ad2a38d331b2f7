/** How sure all of this is: what was verified, and what is not known. */

import { el, exact } from '../dom.ts'
import { count, percent, plural } from '../words.ts'
import { type Report, section, type View } from './section.ts'

export function sure({ data }: Report): View {
  const { sure: facts, why, timeline, stacks, map, arenaEvents, play } = data
  const all = facts.matched === facts.addresses
  const rows: [string, HTMLElement | string][] = [
    [
      'Addresses',
      el(
        'span',
        {},
        exact(facts.matched, count(facts.matched)),
        ' of ',
        exact(facts.addresses, count(facts.addresses)),
        ' came out as recorded',
      ),
    ],
    ['Python', `${facts.python}, replayed by the rules of ${facts.release}`],
    ['Command', el('code', {}, facts.command.join(' '))],
    [
      'Stacks',
      facts.stacks === 0
        ? 'were off: who asked for memory cannot be told'
        : `at most ${plural(facts.stacks, 'frame')} of each, the innermost`,
    ],
    [
      'Recording',
      `${why.trace.path}, ${plural(why.trace.events, 'event')}${why.trace.complete ? '' : '; it ends before the program did'}`,
    ],
    ['Moment', `${why.at.moment}: event ${count(why.at.event)}`],
    ['obmalloc', facts.version],
  ]
  const bounded = [
    ['rows of the timeline', timeline],
    ['times that an arena was taken or given back', arenaEvents],
    ['frames of the heap map’s film', play],
    ['stacks; the others’ figures are with their callers', stacks],
    ['single blocks', map.blocks],
  ] as const
  const left = bounded.flatMap(([what, bound]) =>
    bound !== null && bound.shown < bound.of ? [`${count(bound.shown)} of ${count(bound.of)} ${what}`] : [],
  )
  if (why.arenas.length < why.totals.arenas) left.push(`${count(why.arenas.length)} of ${count(why.totals.arenas)} arenas`)
  if (map.blocks === null) left.push('no single blocks')
  return section(
    'sure',
    'How sure',
    all
      ? 'Every call of the recording was made again, and every answer was the recorded one. So the picture of the heap is that of the program.'
      : `Every call of the recording was made again, and ${percent(facts.matched / (facts.addresses || 1))} of the answers were the recorded ones. Take the figures with care.`,
    el('dl', { class: 'sure' }, ...rows.flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)])),
    el('h3', {}, 'Not recorded'),
    el(
      'ul',
      {},
      ...(facts.notRecorded.length === 0 ? ['Nothing that is known of.'] : facts.notRecorded).map((text) => el('li', {}, text)),
    ),
    left.length > 0 && el('h3', {}, 'In this page are'),
    left.length > 0 && el('ul', { class: 'bounds' }, ...left.map((text) => el('li', {}, text))),
  )
}
