/** The view and the selection. They are in the address's hash, so that a link shows the same. */

const DEFAULTS = {
  /** The section that is looked at. */
  view: 'answer',
  /** The range, as events; -1 where there is none. */
  from: -1,
  to: -1,
  /** Whether the timeline shows the range only. */
  zoomed: false,
  /** The cursor, an event; -1 for the moment of the report. */
  at: -1,
  /** The arena that is open, an index; -1 for none. */
  arena: -1,
  arenaSort: '-share',
  arenaFilter: '',
  site: -1,
  siteSort: '-held',
  siteFilter: '',
  flame: 'held',
  find: '',
  node: 0,
  inverted: false,
  imports: true,
  color: 'fill',
  diffSort: '-grown',
  theme: '',
}

export type State = typeof DEFAULTS
export type Key = keyof State

type Listener = (state: Readonly<State>) => void

let state: State = read()
const listeners: { keys: ReadonlySet<Key>; call: Listener }[] = []
let timer: number | undefined

function read(): State {
  const found = { ...DEFAULTS } as Record<string, string | number | boolean>
  for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
    const before = (DEFAULTS as Record<string, unknown>)[key]
    if (typeof before === 'string') found[key] = value
    if (typeof before === 'boolean') found[key] = value === '1'
    if (typeof before === 'number' && /^-?\d{1,15}$/.test(value)) found[key] = Number(value)
  }
  return found as unknown as State
}

export function look(): Readonly<State> {
  return state
}

export function hash(changes: Partial<State> = {}): string {
  const all = { ...state, ...changes } as Record<string, string | number | boolean>
  const said = new URLSearchParams()
  for (const [key, value] of Object.entries(all))
    if (value !== (DEFAULTS as Record<string, unknown>)[key])
      said.set(key, value === true ? '1' : value === false ? '0' : String(value))
  return `#${said}`
}

/** Changes the view or the selection, and calls the listeners of what has changed. */
export function go(changes: Partial<State>): void {
  const before = state
  state = { ...state, ...changes }
  tell(before)
  // Browsers allow an address to be changed only so often.
  timer ??= setTimeout(() => {
    timer = undefined
    if (hash() !== location.hash) history.replaceState(null, '', hash())
  }, 250)
}

function tell(before: State): void {
  const changed = (Object.keys(DEFAULTS) as Key[]).filter((key) => state[key] !== before[key])
  for (const { keys, call } of listeners) if (changed.some((key) => keys.has(key))) call(state)
}

/** Calls now, and whenever one of `keys` changes. */
export function follow(keys: readonly Key[], call: Listener): void {
  listeners.push({ keys: new Set(keys), call })
  call(state)
}

/** Takes the view and the selection from an address that was followed or typed. */
export function followAddress(arrived: () => void): void {
  addEventListener('hashchange', () => {
    if (location.hash === hash()) return
    const before = state
    state = read()
    tell(before)
    arrived()
  })
}
