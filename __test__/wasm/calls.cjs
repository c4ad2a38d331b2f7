/** Makes the calls of a program, which is JSON on the standard input, and prints what came of each, a line each. Argument: a release. */

const { readFileSync } = require('node:fs')

const { Heap } = require('obmalloc')

const [release] = process.argv.slice(2)
const OPTIONS = [
  {},
  {},
  { allocator: 'pymalloc_debug' },
  { quarantine: 20_000 },
  { memoryLimit: 3 << 20 },
  { allocator: 'malloc' },
]
const DOMAINS = ['raw', 'mem', 'obj']
/** Instead of a size, and of an address. */
const ODD = [-1, -0, 1.5, NaN, Infinity, '8', 8n, null, undefined, true, {}, 65_536, 65_537, 2 ** 53, 2n ** 64n]

const program = JSON.parse(readFileSync(0, 'utf8'))
let next = 0
let depth = 0
const lines = []

function rewritten(text) {
  return text.replaceAll(/0x[0-9a-f]+|\b\d{6,}\b/g, '#')
}

/** The next call, from inside a callback. */
function nested() {
  if (depth < 3 && next < program.length) make(program[next++])
}

const heaps = OPTIONS.map((options) => {
  const heap = new Heap({ release, ...options, onUnraisable: (error) => lines.push(`unraisable ${error.code}`) })
  // Collections become due often.
  heap.gc.setThreshold(5)
  return {
    heap,
    slots: [],
    placed: [],
    typed: null,
    own: DOMAINS.map((domain) => heap.getAllocator(domain)),
    replaced: [false, false, false],
  }
})

function typeOf(state) {
  const fields = { next: 'object', n: 'i32', x: 'f64' }
  const traverse = (object, visit) => {
    nested()
    const held = state.typed.get(object, 'next')
    if (held !== null) visit(held)
  }
  return (state.typed ??= state.heap.defineType({ name: 'node', gc: true, fields, finalize: nested, traverse }))
}

/** An allocator of a script's that asks the heap's own, and now and then makes a call meanwhile, or throws. */
function wrapped(own) {
  let calls = 0
  const around =
    (name) =>
    (...values) => {
      if (++calls % 3 === 0) nested()
      if (calls % 17 === 0) throw new Error('no')
      return own[name](...values)
    }
  return { malloc: around('malloc'), calloc: around('calloc'), realloc: around('realloc'), free: around('free') }
}

/** The C library may give a freed block's address again, or not. */
function forget(state, slot) {
  if (!state.placed[slot]) state.slots[slot] = null
}

const verbs = {
  malloc: ({ calls, slots }, slot, value) => (slots[slot] = calls.malloc(value)),
  calloc: ({ calls, slots }, slot, value) => (slots[slot] = calls.calloc(slot & 3, value)),
  realloc: ({ calls, slots }, slot, value) => (slots[slot] = calls.realloc(slots[slot], value)),
  free(state, slot) {
    state.calls.free(state.slots[slot])
    forget(state, slot)
  },
  freeAgain(state, slot) {
    try {
      state.calls.free(state.slots[slot])
      state.calls.free(state.slots[slot])
    } finally {
      forget(state, slot)
    }
  },
  freeInside: ({ calls, slots }, slot) => calls.free(slots[slot] + 8),
  freeOdd: ({ calls }, slot) => calls.free(ODD[slot % ODD.length]),
  reallocOdd: ({ calls }, slot, value) => calls.realloc(ODD[slot % ODD.length], value),
  far: ({ calls, slots }, slot) => calls.free(slots[slot] + 2 ** 45),
  size: ({ calls, slots }, slot) => calls.usableSize(slots[slot]),
  set: ({ calls, slots }, slot, value) => calls.setInt32(slots[slot], value),
  get({ calls, slots }, slot, value) {
    calls.setInt32(slots[slot], 7, value)
    return calls.getInt32(slots[slot], value)
  },
  alloc: (state, slot) => (state.slots[slot] = typeOf(state).alloc()),
  incref: ({ heap, slots }, slot) => heap.incref(slots[slot]),
  decref: ({ heap, slots }, slot) => heap.decref(slots[slot]),
  refcount: ({ heap, slots }, slot) => heap.refcount(slots[slot]),
  field: (state, slot, value) => (typeOf(state).set(state.slots[slot], 'n', value), typeOf(state).get(state.slots[slot], 'n')),
  refer: (state, slot, value) => typeOf(state).set(state.slots[slot], 'next', state.slots[30 + (value % 10)]),
  collect: ({ heap }) => heap.gc.collect(),
  blocks: ({ heap }) => heap.allocatedBlocks(),
  put(state) {
    // One heap stays plain.
    if (state === heaps[0]) return
    state.heap.setAllocator(DOMAINS[state.domain], wrapped(state.own[state.domain]))
    state.replaced[state.domain] = true
  },
  putBack(state) {
    state.heap.setAllocator(DOMAINS[state.domain], state.own[state.domain])
    state.replaced[state.domain] = false
  },
  nomemory: ({ heap }, slot) => heap.setNomemory(slot, slot + 3),
  memory: ({ heap }) => heap.removeNomemory(),
  verify: ({ heap }) => heap.verify(),
  close: ({ heap }) => heap.close(),
}

function make([verb, index, domain, slot, value]) {
  // What has gone to the C library may come again from it at once, or not: no objects there.
  const state = heaps[verb === 'alloc' ? index % 5 : index]
  state.domain = domain
  state.calls = state.heap[DOMAINS[domain]]
  const size = typeof value === 'number' ? value : ODD[value[0] % ODD.length]
  depth++
  let said
  try {
    const answer = verbs[verb](state, slot, size)
    const isObject = verb === 'alloc'
    const bytes = verb === 'calloc' ? size * (slot & 3) : size
    const isSmall = isObject || (domain !== 0 && bytes > 0 && bytes < 480)
    const isAddress = ['malloc', 'calloc', 'realloc', 'reallocOdd', 'alloc'].includes(verb) && answer !== null
    if (isAddress) {
      // The C library and scripts lay their blocks out as they like.
      const wasPlaced = verb !== 'realloc' || state.placed[slot]
      state.placed[slot] = wasPlaced && isSmall && state !== heaps[5] && !state.replaced[isObject ? 2 : domain]
    }
    said = !isAddress ? String(answer) : state.placed[slot] ? answer % state.heap.geometry.arenaSize : 'a block'
  } catch (error) {
    const { name, code, message, address, domain, used, allocated, offset } = error
    said = [name, code, rewritten(message), address !== undefined, domain, used, allocated, offset].join(' ')
  }
  depth--
  lines.push(`${depth} ${[verb, index, domain, slot, JSON.stringify(value)].join()}: ${said}`)
}

while (next < program.length) make(program[next++])
console.log(lines.join('\n'))
