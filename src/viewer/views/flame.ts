/** The flame graph: the stacks that asked for the memory, outermost callers on top. */

import type { Frame } from '../../report-data.ts'
import { choice, el, exact, search, toggle } from '../dom.ts'
import { madeInRange } from '../made.ts'
import { colour, css, picture, point, rgb, type Rgb } from '../paint.ts'
import { follow, go, look } from '../state.ts'
import { nodeAt, NONE, pathOf, treeOf, type Tree } from '../tree.ts'
import { bytes, count, named, percent, place, seconds } from '../words.ts'
import { type Report, section, type View } from './section.ts'
import { sourceOf, stackList } from './stack.ts'

const ROW = 22
/** Rows that are drawn: more than the frames that a recording keeps of a stack. */
const MOST_DEEP = 80

const METRICS = {
  held: ['held', 'Each arena’s bytes, divided among those who have live blocks in it', 'held at the moment'],
  live: ['live', 'Bytes of live blocks', 'live at the moment'],
  peak: ['at the peak', 'The same as held, when most was held', 'held at the peak'],
  allocated: ['allocated', 'All bytes asked for up to the moment', 'asked for up to the moment'],
  temporary: ['temporary', 'Bytes of blocks that were freed within 10,000 events', 'freed within 10,000 events'],
} as const
type Metric = keyof typeof METRICS

/** The families of files, by whose code they are. */
const FAMILIES = {
  own: 'the program',
  installed: 'installed packages',
  standard: 'the standard library',
  import: 'the import system',
} as const

function familyOf(file: string): keyof typeof FAMILIES {
  if (file.startsWith('<frozen importlib') || file.includes('/importlib/')) return 'import'
  if (/\/(?:site|dist)-packages\//.test(file)) return 'installed'
  return file.startsWith('<frozen') || /\/lib\d*\/python\d/.test(file) ? 'standard' : 'own'
}

interface Box {
  readonly node: number
  readonly left: number
  readonly top: number
  readonly width: number
}

export function flame(report: Report): View {
  const { data, clock } = report
  const { frames, stacks, why } = data
  const hidden = new Set(frames.flatMap(({ file }, index) => (familyOf(file) === 'import' ? [index] : [])))
  const nothing = new Set<number>()
  let tree: Tree = treeOf(stacks, [], frames.length, nothing, false)
  let [zoom, active, made] = [0, 0, '']
  let boxes: Box[] = []
  let matches = new Set<number>()
  const said = el('p', { class: 'range', role: 'status' })
  const detail = el('div', { class: 'detail' })
  const box = el('div', { class: 'canvas' })
  const metric = (): Metric => (look().flame in METRICS ? (look().flame as Metric) : 'held')
  const follows = () => (metric() === 'held' || metric() === 'live') && madeInRange(report) !== null

  const kinds = choice(
    'Of what',
    Object.entries(METRICS).map(([value, [text, about]]) => [value, text, about] as const),
    (value) => go({ flame: value, node: 0 }),
  )
  const find = search('Search functions and files', (text) => go({ find: text }))
  const inverted = toggle('invert', 'Innermost functions first, their callers below', (on) => go({ inverted: on, node: 0 }))
  const imports = toggle('hide imports', 'Leave the import system’s own frames out', (on) => go({ imports: !on, node: 0 }))
  const out = el('button', { type: 'button', onclick: () => go({ node: 0 }) }, 'Zoom out')

  const frameOf = (node: number): Frame | undefined => frames[tree.frame[node]!]
  const nameOf = (node: number) => (node === 0 ? 'all' : named(frameOf(node)))

  /** Nodes from the root to one. */
  function line(node: number): number[] {
    const path = [node]
    for (let at = node; at !== 0; at = tree.parent[at]!) path.push(tree.parent[at]!)
    return path.reverse()
  }

  function lay(width: number): Box[] {
    const laid: Box[] = line(zoom).map((node, depth) => ({ node, left: 0, top: depth * ROW, width }))
    const wide = width / (tree.total[zoom]! || 1)
    const waiting = [laid.at(-1)!]
    for (let one = waiting.pop(); one !== undefined; one = waiting.pop()) {
      let { left } = one
      for (const child of tree.children[one.node] ?? []) {
        const next = { node: child, left, top: one.top + ROW, width: tree.total[child]! * wide }
        left += next.width
        // Children are in order of size: the rest is as narrow.
        if (next.width < 0.6) break
        laid.push(next)
        waiting.push(next)
      }
    }
    return laid
  }

  const shades = new Map<string, string>()
  /** A family's colour, a little lighter or darker by file. */
  function shade({ file }: Frame): string {
    const key = `${file} ${colour('paper')}`
    let known = shades.get(key)
    if (known === undefined) {
      let sum = 7
      for (const letter of file) sum = (Math.imul(sum, 31) + letter.codePointAt(0)!) >>> 0
      const by = 0.85 + ((sum >>> 8) % 16) / 100
      known = css(rgb(colour(`flame-${familyOf(file)}`)).map((part) => Math.min(255, Math.round(part * by))) as unknown as Rgb)
      shades.set(key, known)
    }
    return known
  }

  const chart = picture(
    box,
    'Flame graph. Arrow keys go from frame to frame, Enter zooms in, Escape zooms out.',
    (width) => {
      boxes = lay(width)
      return ROW * Math.min(MOST_DEEP, 1 + boxes.reduce((most, { top }) => Math.max(most, top / ROW), 0)) + 2
    },
    (context, width, height) => {
      boxes = lay(width)
      const focused = document.activeElement === chart.canvas
      context.font = '12px ui-monospace, monospace'
      for (const { node, left, top, width: wide } of boxes) {
        if (top > height) continue
        const frame = frameOf(node)
        const matched = matches.size > 0 && matches.has(tree.frame[node]!)
        context.globalAlpha = matches.size > 0 && !matched ? 0.3 : top < (line(zoom).length - 1) * ROW ? 0.55 : 1
        context.fillStyle = matched
          ? colour('match')
          : frame === undefined || frame.file === ''
            ? colour('flame-import')
            : shade(frame)
        context.fillRect(left, top, Math.max(0.6, wide - (wide > 3 ? 1 : 0)), ROW - 1)
        context.globalAlpha = 1
        if (wide > 34) {
          const text =
            node === 0 ? `all: ${bytes(tree.total[0]!)}` : frame === undefined || frame.file === '' ? nameOf(node) : label(frame)
          context.fillStyle = colour('on-flame')
          context.fillText(fit(text, wide - 10), left + 5, top + ROW / 2)
        }
        if (focused && node === active) {
          context.strokeStyle = colour('text')
          context.lineWidth = 2
          context.strokeRect(left + 1, top + 1, Math.max(2, wide - 3), ROW - 3)
        }
      }
    },
  )

  const label = (frame: Frame) => {
    const source = sourceOf(report, frame)
    return `${frame.function}  ${place(frame)}${source === undefined ? '' : `  ${source}`}`
  }

  const letter = 7.23
  const fit = (text: string, width: number) =>
    text.length * letter <= width ? text : `${text.slice(0, Math.max(1, Math.floor(width / letter) - 1))}…`

  /** Own values of every stack: of all blocks, or of those made in the range. */
  function values(): ArrayLike<number> {
    const range = follows() ? madeInRange(report) : null
    if (range === null) return stacks[metric()]
    const of = metric() === 'held' ? range.sites.held : range.sites.live
    const own = new Float64Array(stacks.parent.length)
    for (const [site, node] of siteNodes().entries()) own[node]! += of[site]!
    own[0]! += of.at(-1)!
    return own
  }

  let known: number[] | undefined
  /** For each site, the node of its stack, or of the part of it that was not folded away. */
  function siteNodes(): number[] {
    if (known !== undefined) return known
    const text = ({ file, line: at, function: name }: Frame) => `${file}\0${at}\0${name}`
    const numbers = new Map(frames.map((frame, index) => [text(frame), index]))
    const below = new Map<number, number>()
    for (let node = 0; node < stacks.parent.length; node++) {
      const above = stacks.parent[node]!
      below.set((above === NONE ? 0 : above + 1) * frames.length + stacks.frame[node]!, node)
    }
    known = why.sites.map(({ stack }) => {
      let [node, found] = [0, 0]
      for (let depth = stack.length - 1; depth >= 0; depth--) {
        const next = below.get(node * frames.length + (numbers.get(text(stack[depth]!)) ?? frames.length))
        if (next === undefined) break
        node = next + 1
        found = next
      }
      return found
    })
    return known
  }

  function tell(): void {
    const total = tree.total[0]!
    const moment = clock.known && why.at.seconds !== null ? seconds(why.at.seconds) : `event ${count(why.at.event)}`
    const range = look().from < 0 ? null : madeInRange(report)
    const of: (string | HTMLElement)[] = [exact(total, bytes(total)), ` ${METRICS[metric()][2]} (${moment})`]
    if (follows())
      of.push(
        `, of blocks that were made in the chosen range${range?.sampled ? ', as far as single blocks are in this page' : ''}.`,
      )
    else if (look().from >= 0) of.push('. This is of the whole recording: it is not known by range.')
    else of.push('.')
    if (matches.size > 0) {
      const found = matched()
      of.push(' Found: ', exact(found, bytes(found)), `, ${percent(found / (total || 1))}.`)
    } else if (look().find !== '') of.push(' Nothing of that name is here.')
    said.replaceChildren(...of)
    said.querySelector('data')?.setAttribute('data-total', metric())
    out.hidden = zoom === 0
  }

  /** What lies in or below frames that were found, each counted once. */
  function matched(): number {
    let sum = 0
    const waiting = [0]
    for (let node = waiting.pop(); node !== undefined; node = waiting.pop())
      if (matches.has(tree.frame[node]!)) sum += tree.total[node]!
      else waiting.push(...(tree.children[node] ?? []))
    return sum
  }

  function show(node: number): void {
    active = node
    const frame = frameOf(node)
    const [total, own] = [tree.total[node]!, tree.self[node]!]
    const path = line(node)
      .slice(1)
      .map((at) => frameOf(at)!)
    if (node === 0) {
      detail.replaceChildren(
        el('p', { class: 'faint' }, 'Point at a bar to read its line; click it, or press Enter on it, to zoom in.'),
      )
      return chart.draw()
    }
    detail.replaceChildren(
      el('h3', {}, nameOf(node)),
      el(
        'p',
        { class: 'faint' },
        exact(total, bytes(total)),
        ` (${percent(total / (tree.total[0]! || 1))}) with all below it, `,
        exact(own, bytes(own)),
        ' by itself',
      ),
      ...(frame === undefined ? [] : [stackList(report, look().inverted ? path : path.toReversed())]),
    )
    chart.draw()
  }

  const at = (event: MouseEvent) => {
    const { left, top } = chart.canvas.getBoundingClientRect()
    const [x, y] = [event.clientX - left, event.clientY - top]
    return boxes.find((one) => x >= one.left && x < one.left + Math.max(1, one.width) && y >= one.top && y < one.top + ROW)?.node
  }
  chart.canvas.addEventListener('pointermove', (event) => {
    const node = at(event)
    if (node === undefined) return point(null)
    const frame = frameOf(node)
    const source = frame && sourceOf(report, frame)
    point(
      event,
      nameOf(node),
      ...(source === undefined ? [] : [source]),
      `${bytes(tree.total[node]!)}, ${percent(tree.total[node]! / (tree.total[0]! || 1))}`,
    )
  })
  chart.canvas.addEventListener('pointerleave', () => point(null))
  chart.canvas.addEventListener('click', (event) => {
    const node = at(event)
    if (node === undefined) return
    show(node)
    go({ node: pathOf(tree, node) })
  })
  chart.canvas.addEventListener('keydown', (event) => {
    const above = active === 0 ? undefined : tree.parent[active]!
    const beside = above === undefined ? [] : (tree.children[above] ?? [])
    const place = beside.indexOf(active)
    const moves: Record<string, () => number | undefined> = {
      ArrowUp: () => above,
      ArrowDown: () => tree.children[active]?.[0],
      ArrowLeft: () => beside[place - 1],
      ArrowRight: () => beside[place + 1],
    }
    const move = moves[event.key]
    if (move === undefined && event.key !== 'Enter' && (event.key !== 'Escape' || zoom === 0)) return
    event.preventDefault()
    event.stopPropagation()
    if (event.key === 'Enter') return go({ node: pathOf(tree, active) })
    if (event.key === 'Escape') return go({ node: 0 })
    const next = move!()
    if (next !== undefined) show(next)
  })
  for (const kind of ['focus', 'blur']) chart.canvas.addEventListener(kind, () => chart.draw())

  follow(['flame', 'inverted', 'imports', 'find', 'node', 'from', 'to', 'theme'], (state) => {
    kinds.show(metric())
    find.show(state.find)
    inverted.show(state.inverted)
    imports.show(!state.imports)
    const range = follows() ? `${state.from} ${state.to}` : ''
    const wanted = [metric(), state.inverted, state.imports, range].join()
    if (wanted !== made) {
      made = wanted
      tree = treeOf(stacks, values(), frames.length, state.imports ? nothing : hidden, state.inverted)
      active = 0
    }
    const words = state.find.toLowerCase()
    matches = new Set(
      words === ''
        ? []
        : frames.flatMap((frame, index) =>
            `${frame.function} ${frame.file}:${frame.line}`.toLowerCase().includes(words) ? [index] : [],
          ),
    )
    zoom = nodeAt(tree, state.node)
    tell()
    show(active === 0 ? zoom : active)
  })
  return section(
    'flame',
    'Flame graph',
    'Who asked for the memory. A function’s bar is as wide as what it and all it called account for; callers stand above.',
    el('div', { class: 'tools' }, kinds.element, find.element, inverted.element, imports.element, out),
    said,
    el(
      'ul',
      { class: 'legend' },
      ...Object.entries(FAMILIES).map(([family, name]) => {
        const swatch = el('span', { class: 'swatch', 'aria-hidden': 'true' })
        swatch.style.background = `var(--flame-${family})`
        return el('li', {}, swatch, name)
      }),
    ),
    box,
    detail,
  )
}
