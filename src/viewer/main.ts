/** The page: unpacks the data, puts the views below each other, and listens for keys. */

import './page.css'

import { Clock, unpack } from './data.ts'
import { el } from './dom.ts'
import { repaint, measureAll } from './paint.ts'
import { follow, followAddress, go, look } from './state.ts'
import { answer, facts } from './views/answer.ts'
import { arenas } from './views/arenas.ts'
import { blocks } from './views/blocks.ts'
import { diff } from './views/diff.ts'
import { flame } from './views/flame.ts'
import { heapMap } from './views/map.ts'
import type { Report, View } from './views/section.ts'
import { sure } from './views/sure.ts'
import { step, timeline } from './views/timeline.ts'
import { whatIf } from './views/what-if.ts'

const VIEWS: readonly ((report: Report) => View)[] = [answer, timeline, arenas, flame, heapMap, blocks, whatIf, diff, sure]

const KEYS = [
  ['1 … 9', 'go to a view'],
  ['← →', 'step to the next arena that was taken or given back'],
  ['Shift ← →', 'the same, and choose a range'],
  ['z', 'zoom the timeline to the range'],
  ['/', 'search in the flame graph'],
  ['t', 'dark or light'],
  ['Esc', 'clear the range and the cursor'],
  ['?', 'show or hide these keys'],
]

/** The theme that was chosen, or the system's. */
function dress(): void {
  document.documentElement.dataset['theme'] = themeNow()
  repaint()
}

const system = matchMedia('(prefers-color-scheme: dark)')
const themeNow = () => look().theme || (system.matches ? 'dark' : 'light')

async function start(): Promise<void> {
  follow(['theme'], dress)
  system.addEventListener('change', dress)
  const packed = document.querySelector('#data')
  if (packed === null) {
    document.body.append(
      el('main', {}, el('p', { class: 'said' }, 'This page has no data: `obmalloc report FILE` puts some into it.')),
    )
    return
  }
  const data = await unpack(packed.textContent!.trim())
  packed.remove()
  const report: Report = { data, clock: new Clock(data) }
  const name = data.sure.command.slice(1).join(' ') || data.why.trace.path
  document.title = `Memory of ${name}`

  const views = VIEWS.map((make) => make(report))
  const links = views.map(({ id, title }, index) =>
    el(
      'a',
      {
        href: `#view=${id}`,
        title: `Key ${index + 1}`,
        onclick: (event: Event) => {
          event.preventDefault()
          visit(id)
        },
      },
      title,
    ),
  )
  const keys = el(
    'dialog',
    { class: 'keys', 'aria-label': 'Keys' },
    el('h2', {}, 'Keys'),
    el('dl', {}, ...KEYS.flatMap(([key, does]) => [el('dt', {}, el('kbd', {}, key!)), el('dd', {}, does!)])),
    el('p', { class: 'faint' }, 'In a picture or a table, the arrow keys walk in it; Enter opens, Esc leaves.'),
    el('form', { method: 'dialog' }, el('button', {}, 'Close')),
  )
  const theme = () => go({ theme: themeNow() === 'dark' ? 'light' : 'dark' })
  const nav = el('nav', { 'aria-label': 'Views' }, ...links)
  const top = el(
    'header',
    {},
    el(
      'div',
      { class: 'title' },
      el('h1', {}, 'Memory of ', el('code', {}, name)),
      el('span', { class: 'faint' }, `CPython ${data.sure.python}`),
      facts(report),
      el(
        'div',
        { class: 'tools' },
        el('button', { type: 'button', title: 'Key t', onclick: theme }, 'Dark / light'),
        el('button', { type: 'button', title: 'Key ?', onclick: () => keys.showModal() }, 'Keys'),
      ),
    ),
  )
  document.body.append(
    el(
      'a',
      { class: 'skip', href: '#answer', onclick: (event: Event) => (event.preventDefault(), visit('answer')) },
      'Skip to the answer',
    ),
    top,
    nav,
    el('main', {}, ...views.map(({ section }) => section)),
    keys,
  )

  const arrive = () => {
    const view = views.find(({ id }) => id === look().view) ?? views[0]!
    const heading = view.section.querySelector('h2')!
    heading.focus({ preventScroll: true })
    if (view === views[0]) scrollTo(0, 0)
    else view.section.scrollIntoView()
  }
  function visit(view: string): void {
    go({ view })
    arrive()
  }
  follow(['view'], ({ view }) => {
    for (const [index, link] of links.entries()) {
      if (views[index]!.id === view) {
        link.setAttribute('aria-current', 'true')
        // In a narrow window the links are wider than it.
        nav.scrollLeft = link.offsetLeft - nav.clientWidth / 2 + link.offsetWidth / 2
      } else link.removeAttribute('aria-current')
    }
  })
  document.addEventListener('arrive', arrive)
  followAddress(arrive)
  measureAll()
  if (look().view !== 'answer') arrive()

  // After scrolling, the view at the top of the window is the chosen one.
  addEventListener(
    'scroll',
    () => {
      const line = nav.getBoundingClientRect().bottom + innerHeight * 0.25
      const end = innerHeight + scrollY >= document.documentElement.scrollHeight - 2
      const seen = end ? views.at(-1) : views.findLast(({ section }) => section.getBoundingClientRect().top <= line)
      const wanted = views.find(({ id }) => id === look().view)
      // A view that is near the page's end cannot come to the top.
      if (end && wanted && wanted.section.getBoundingClientRect().top < innerHeight) return
      if (seen && seen.id !== look().view) go({ view: seen.id })
    },
    { passive: true },
  )

  addEventListener('keydown', (event) => {
    const { target, key, ctrlKey, metaKey, altKey, shiftKey } = event
    if (ctrlKey || metaKey || altKey || keys.open) return
    if (target instanceof HTMLInputElement && (target.type !== 'checkbox' || key === ' ')) {
      if (key === 'Escape') target.blur()
      return
    }
    const actions: Record<string, () => void> = {
      ArrowLeft: () => step(report, false, shiftKey),
      ArrowRight: () => step(report, true, shiftKey),
      Escape: () => go({ from: -1, to: -1, at: -1, zoomed: false }),
      z: () => go({ zoomed: look().from >= 0 && !look().zoomed }),
      t: theme,
      '/': () => {
        visit('flame')
        document.querySelector<HTMLInputElement>('#flame input[type=search]')?.focus()
      },
      '?': () => keys.showModal(),
    }
    const action = /^[1-9]$/.test(key) ? () => visit(views[Number(key) - 1]!.id) : actions[key]
    if (action === undefined) return
    event.preventDefault()
    action()
  })
  performance.mark('ready')
  document.documentElement.dataset['ready'] = 'true'
}

start().catch((error: unknown) => {
  document.body.append(
    el(
      'p',
      { class: 'failed', role: 'alert' },
      `The page cannot show its data: ${error instanceof Error ? error.message : String(error)}`,
    ),
  )
})
