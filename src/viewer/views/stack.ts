/** A stack as a list, with its source lines. */

import type { Frame } from '../../report-data.ts'
import { el } from '../dom.ts'
import { place } from '../words.ts'
import type { Report } from './section.ts'

export function sourceOf({ data }: Report, { file, line }: Frame): string | undefined {
  return data.sources[file]?.[line]?.trim()
}

export function stackList(report: Report, stack: readonly Frame[]): HTMLElement {
  if (stack.length === 0)
    return el('p', { class: 'faint' }, 'No Python frame was there: the interpreter itself asked, or stacks were off.')
  return el(
    'ol',
    { class: 'stack' },
    ...stack.map((frame) =>
      el(
        'li',
        {},
        el(
          'span',
          {},
          el('b', {}, frame.function),
          ' ',
          el('span', { class: 'faint', title: `${frame.file}:${frame.line}` }, place(frame)),
        ),
        sourceOf(report, frame) !== undefined && el('code', {}, sourceOf(report, frame)!),
      ),
    ),
  )
}
