/** A table that has only those rows in the page that can be seen; sorted by its heads, walked with the arrow keys. */

import { el, type Child } from './dom.ts'

export interface TableColumn<Row> {
  readonly key: string
  readonly title: string
  /** What the column means, in a sentence. */
  readonly about: string
  /** A width of CSS's grid. */
  readonly width: string
  readonly number?: boolean
  readonly cell: (row: Row) => Child
  /** What to sort by; numbers begin with the largest. */
  readonly by?: (row: Row) => number | string
}

export interface TableOptions<Row> {
  readonly label: string
  readonly columns: readonly TableColumn<Row>[]
  readonly empty: string
  readonly sorted: (sort: string) => void
  readonly chosen?: (row: Row) => void
}

export interface Table<Row> {
  readonly element: HTMLElement
  /** `sort` is a column's key, with `-` in front of it for the largest first. */
  readonly show: (rows: readonly Row[], sort: string, chosen?: Row) => void
}

const ROW = 34
const MOST = 12

let tables = 0

export function table<Row>({ label, columns, empty, sorted, chosen }: TableOptions<Row>): Table<Row> {
  const id = `table${tables++}`
  let rows: readonly Row[] = []
  let order = ''
  let [active, marked] = [-1, -1]
  const heads = columns.map((column) => {
    const button = el('button', { type: 'button', title: column.about, onclick: () => sorted(nextOrder(column)) }, column.title)
    return el(
      'div',
      { role: 'columnheader', class: column.number ? 'number' : '' },
      column.by ? button : el('span', { title: column.about }, column.title),
    )
  })
  const head = el('div', { role: 'row', class: 'head', 'aria-rowindex': 1 }, ...heads)
  const body = el('div', { role: 'rowgroup', class: 'body' })
  const frame = el('div', { class: 'grid', role: 'grid', 'aria-label': label, tabindex: 0 }, head, body)
  for (const line of [head, body]) line.style.setProperty('--columns', columns.map(({ width }) => width).join(' '))

  function nextOrder({ key, number }: TableColumn<Row>): string {
    if (order === `-${key}`) return key
    return order === key ? `-${key}` : number ? `-${key}` : key
  }

  function render(): void {
    const first = Math.max(0, Math.floor(frame.scrollTop / ROW) - 4)
    const last = Math.min(rows.length, first + MOST + 9)
    const lines: HTMLElement[] = []
    for (let index = first; index < last; index++) {
      const row = rows[index]!
      const line = el(
        'div',
        {
          role: 'row',
          id: `${id}r${index}`,
          class: `line${index === active ? ' active' : ''}`,
          'aria-rowindex': index + 2,
          'aria-selected': chosen && String(index === marked),
          onclick: () => choose(index),
        },
        ...columns.map(({ cell, number }) => el('div', { role: 'gridcell', class: number ? 'number' : '' }, cell(row))),
      )
      line.style.top = `${index * ROW}px`
      lines.push(line)
    }
    body.replaceChildren(...(rows.length === 0 ? [el('p', { class: 'empty' }, empty)] : lines))
    body.style.height = `${Math.max(2, rows.length) * ROW}px`
    if (active >= first && active < last) frame.setAttribute('aria-activedescendant', `${id}r${active}`)
    else frame.removeAttribute('aria-activedescendant')
  }

  function choose(index: number): void {
    active = index
    const row = rows[index]
    if (row !== undefined && chosen) chosen(row)
    else render()
  }

  frame.addEventListener('scroll', render)
  frame.addEventListener('keydown', (event) => {
    if (event.target !== frame || event.ctrlKey || event.metaKey || event.altKey) return
    const page = Math.max(1, Math.floor(frame.clientHeight / ROW) - 2)
    const steps: Record<string, number> = {
      ArrowDown: 1,
      ArrowUp: -1,
      PageDown: page,
      PageUp: -page,
      Home: -rows.length,
      End: rows.length,
    }
    const step = steps[event.key]
    if (step === undefined && event.key !== 'Enter') return
    event.preventDefault()
    event.stopPropagation()
    if (event.key === 'Enter') return choose(Math.max(0, active))
    active = Math.min(rows.length - 1, Math.max(0, active + step!))
    const top = active * ROW
    if (top < frame.scrollTop) frame.scrollTop = top
    if (top > frame.scrollTop + frame.clientHeight - 2 * ROW) frame.scrollTop = top - frame.clientHeight + 2 * ROW
    render()
  })

  return {
    element: frame,
    show(some, sort, one) {
      const key = sort.replace(/^-/, '')
      const column = columns.find((candidate) => candidate.key === key)
      const { by } = column ?? {}
      if (some.length !== rows.length) active = -1
      order = sort
      rows = by ? sortedBy(some, by, sort.startsWith('-')) : some
      marked = one === undefined ? -1 : rows.indexOf(one)
      for (const [index, cell] of heads.entries()) {
        const sortable = columns[index]!
        const state = sortable !== column ? 'none' : sort.startsWith('-') ? 'descending' : 'ascending'
        if (sortable.by) cell.setAttribute('aria-sort', state)
      }
      frame.setAttribute('aria-rowcount', String(rows.length + 1))
      frame.style.height = `${Math.min(MOST, Math.max(2, rows.length)) * ROW + ROW + 2}px`
      render()
    },
  }
}

function sortedBy<Row>(rows: readonly Row[], by: (row: Row) => number | string, down: boolean): Row[] {
  const sign = down ? -1 : 1
  return rows
    .map((row) => ({ row, value: by(row) }))
    .sort((a, b) => (a.value < b.value ? -sign : a.value > b.value ? sign : 0))
    .map(({ row }) => row)
}

/** A bar of `part` of its cell, behind a number. */
export function bar(part: number, text: Child): HTMLElement {
  const fill = el('span', { class: 'fill' })
  fill.style.width = `${100 * Math.min(1, Math.max(0, part))}%`
  return el('span', { class: 'bar' }, fill, text)
}
