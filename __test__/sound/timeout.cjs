/**
 * Ends a script's time while a callback of a heap runs. Is the script ended, is nothing called after that, and is the heap whole? The arguments:
 * which callback, how the script goes on, and the release. With `loops` the callback never returns. With `catches` the script catches what it
 * can and calls again, and each callback takes five milliseconds.
 */

'use strict'

const { runInNewContext } = require('node:vm')

const { Heap } = require('obmalloc')

const [, , which, how, release] = process.argv
const TIMEOUT = 100
let calls = 0
let begun = false

function callback() {
  if (!begun) return
  calls++
  const until = how === 'loops' ? Infinity : performance.now() + 5
  while (performance.now() < until);
}

const heap = new Heap({ release, onUnraisable: () => callback() })
const spec = { name: 'T', gc: true, weakrefs: true, fields: { next: 'object' } }
if (['finalize', 'clear', 'dealloc', 'del'].includes(which)) spec[which] = callback
if (which === 'traverse') {
  spec.traverse = (self, visit) => {
    callback()
    const next = T.get(self, 'next')
    if (next !== null) visit(next)
  }
}
if (which === 'unraisable') {
  spec.dealloc = () => {
    throw new Error('no')
  }
}
const T = heap.defineType(spec)
const Inner = heap.defineType({ name: 'U', dealloc: callback })
const Nested = heap.defineType({
  name: 'V',
  finalize() {
    for (let count = 0; count < 5; count++) {
      try {
        heap.decref(Inner.alloc())
      } catch {}
    }
  },
})
const Failing = heap.defineType({
  name: 'W',
  dealloc() {
    for (let count = 0; count < 100; count++) {
      try {
        heap.obj.free(16)
      } catch {}
    }
  },
})

/** Ten objects that only a collection can free. */
function collectTen() {
  for (let count = 0; count < 10; count++) {
    const object = T.alloc()
    T.set(object, 'next', object)
    if (which === 'weakref') heap.gc.newWeakref(object, callback)
    heap.decref(object)
  }
  heap.gc.collect()
}

function allocate() {
  const own = heap.getAllocator('obj')
  const wrap =
    (call) =>
    (...values) => {
      callback()
      return call(...values)
    }
  heap.setAllocator('obj', {
    malloc: wrap(own.malloc),
    calloc: wrap(own.calloc),
    realloc: wrap(own.realloc),
    free: wrap(own.free),
  })
  return () => {
    for (let count = 0; count < 10; count++) heap.obj.free(heap.obj.realloc(heap.obj.malloc(10), 20))
  }
}

function takeArenas() {
  const raw = heap.getAllocator('raw')
  heap.setArenaAllocator({
    alloc(size) {
      callback()
      return raw.malloc(size)
    },
    free(address) {
      callback()
      raw.free(address)
    },
  })
  return () => {
    const blocks = []
    for (let count = 0; count < 6000; count++) blocks.push(heap.obj.malloc(512))
    for (const block of blocks) heap.obj.free(block)
  }
}

function collectWithCallbacks() {
  heap.gc.callbacks.push(callback, callback, callback)
  return () => heap.gc.collect()
}

const programs = {
  __proto__: null,
  allocator: allocate,
  arena: takeArenas,
  callbacks: collectWithCallbacks,
  del: () => () => heap.decref(T.alloc()),
  unraisable: () => () => heap.decref(T.alloc()),
  nested: () => () => heap.decref(Nested.alloc()),
  // These have no callback: errors are being made when the time is over.
  errors: () => () => heap.obj.free(16),
  badArguments: () => () => heap.defineType({}),
  errorsInside: () => () => heap.decref(Failing.alloc()),
}
const one = programs[which]?.() ?? collectTen

const end = performance.now() + 5000
const context = {
  one,
  isLost: () => performance.now() > end,
}
let outcome = 'returned'
begun = true
try {
  runInNewContext('for (;;) { if (isLost()) throw new Error("went on"); try { one() } catch {} }', context, { timeout: TIMEOUT })
} catch (error) {
  outcome = error.code ?? error.message
}
begun = false
heap.verify()
heap.close()
process.stdout.write(`${outcome}, ${how === 'loops' ? `${calls} calls` : 'calls'}, sound\n`)
