/** The arguments of every view, and its section in the page. */

import type { Clock, Data } from '../data.ts'
import { el, type Child } from '../dom.ts'

export interface Report {
  readonly data: Data
  readonly clock: Clock
}

export interface View {
  readonly id: string
  readonly title: string
  readonly section: HTMLElement
}

export function section(id: string, title: string, lead: Child, ...children: readonly Child[]): View {
  return {
    id,
    title,
    section: el(
      'section',
      { id, 'aria-labelledby': `${id}-title` },
      el('h2', { id: `${id}-title`, tabindex: -1 }, title),
      el('p', { class: 'lead' }, lead),
      ...children,
    ),
  }
}
