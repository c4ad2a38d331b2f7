/** Does a task and prints what happened as a line of JSON. It is run with each binding, and the lines must be equal. Arguments: a task, a release. */

const { createHash } = require('node:crypto')

const { Heap } = require('obmalloc')

const [task, release] = process.argv.slice(2)
const REQUESTS = 1_000_000

/** Numbers below `bound`, from a seed. */
function random(seed) {
  let state = seed
  return (bound) => {
    state = (state + 0x9e3779b9) | 0
    let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad)
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97)
    return ((mixed ^ (mixed >>> 15)) >>> 0) % bound
  }
}

const tasks = {
  /** Requests and frees of every size, as the distance of each address from its arena's first byte. */
  requests() {
    const heap = new Heap({ release })
    const next = random(20_250_101)
    const { arenaSize } = heap.geometry
    const ops = new Uint32Array(4 * REQUESTS)
    const sizes = []
    const live = []
    for (let n = 0; n < REQUESTS; n++) {
      // Phases of growing and of shrinking, so that arenas come and go.
      const grows = Math.floor(n / 50_000) % 2 === 0 ? 70 : 35
      if (live.length === 0 || next(100) < grows) {
        sizes.push(next(50) === 0 ? next(5000) : next(513))
        live.push(sizes.length - 1)
        ops.set([next(20) === 0 ? 1 : 0, 1 + next(2), sizes.length - 1, sizes.at(-1)], 4 * n)
        // A block is freed through the domain that gave it.
        live.push(live.pop() * 4 + ops[4 * n + 1])
      } else {
        const [freed] = live.splice(Math.max(0, live.length - 1 - next(2000)), 1)
        ops.set([3, freed & 3, freed >> 2, 0], 4 * n)
      }
    }
    const addresses = new Float64Array(sizes.length)
    const places = new Int32Array(sizes.length)
    const stats = []
    const STEP = 100_000
    for (let n = 0; n < REQUESTS; n += STEP) {
      heap.run(ops.subarray(4 * n, 4 * (n + STEP)), addresses)
      stats.push([
        heap.allocatedBlocks(),
        heap.arenas().length,
        heap
          .arenas()
          .map(({ freePools }) => freePools)
          .join(),
      ])
    }
    // Requests of 0 bytes and large ones go to the C library, which places blocks as it likes.
    for (let n = 0; n < sizes.length; n++) places[n] = sizes[n] === 0 || sizes[n] > 512 ? -1 : addresses[n] % arenaSize
    heap.verify()
    return {
      requests: sizes.length,
      arenas: Math.max(...stats.map(([, arenas]) => arenas)),
      stats,
      first: [...places.subarray(0, 100)],
      places: createHash('sha256').update(Buffer.from(places.buffer)).digest('hex'),
    }
  },

  /** Random graphs, with hooks, weak references and objects that types keep: what was called, in which order, and what is left. */
  objects() {
    const heap = new Heap({ release })
    const { arenaSize } = heap.geometry
    const next = random(77)
    const log = []
    const names = new Map()
    const name = (object) => names.get(object) ?? `?${object % arenaSize}`
    const plain = heap.defineType({
      name: 'plain',
      gc: true,
      weakrefs: true,
      freeList: 8,
      fields: { a: 'object', n: 'i64', b: 'object' },
    })
    const ending = heap.defineType({
      name: 'ending',
      gc: true,
      weakrefs: true,
      items: 'object',
      fields: { a: 'object', x: 'f64' },
      finalize(object) {
        log.push(`finalize ${name(object)}`)
      },
    })
    heap.gc.callbacks.push((phase, info) => log.push(`${phase} ${JSON.stringify(info)}`))
    let made = 0
    for (let round = 0; round < 40; round++) {
      const live = []
      for (let n = 0; n < 300; n++) {
        const object = next(3) === 0 ? ending.alloc(next(4)) : plain.alloc()
        names.set(object, ++made)
        log.push(object % arenaSize)
        live.push(object)
        if (next(10) === 0) {
          const target = object
          const reference = heap.gc.newWeakref(target, () => log.push(`gone ${names.get(target)}`))
          live.push(reference)
          names.set(reference, ++made)
        }
      }
      for (const object of live) {
        const type = heap.typeOf(object)
        if (type === plain) plain.set(object, next(2) ? 'a' : 'b', live[next(live.length)])
        if (type === plain) plain.set(object, 'n', BigInt(next(1 << 30)) * -2_345_678_901n)
        if (type === ending) ending.set(object, 'x', next(1000) / 7)
        if (type === ending && ending.nitems(object) > 0) ending.set(object, 0, live[next(live.length)])
      }
      log.push(heap.gc.getCount().join(), heap.refcount(live[next(live.length)]))
      const some = live[0]
      if (heap.typeOf(some) === plain) log.push(String(plain.get(some, 'n')))
      for (const object of live) heap.decref(object)
      if (round % 4 === 3) log.push(`collected ${heap.gc.collect(next(3))}`)
      log.push(heap.gc.getObjects().length)
    }
    log.push(`collected ${heap.gc.collect()}`, JSON.stringify(heap.gc.getStats()), heap.allocatedBlocks())
    heap.verify()
    return { entries: log.length, last: log.slice(-3), log: createHash('sha256').update(log.join('\n')).digest('hex'), made }
  },

  /** Mistakes, by the code of what is thrown. */
  mistakes() {
    const heap = new Heap({ release, allocator: 'pymalloc_debug' })
    const bare = new Heap({ release, memoryLimit: 4 << 20 })
    const type = heap.defineType({ name: 'node', gc: true, fields: { next: 'object' } })
    const [block, freed, object] = [heap.obj.malloc(40), heap.mem.malloc(40), type.alloc()]
    heap.mem.free(freed)
    const closed = new Heap({ release })
    closed.close()
    return Object.entries({
      domain: () => heap.mem.free(block),
      twice: () => heap.mem.free(freed),
      inside: () => heap.obj.free(block + 8),
      nowhere: () => heap.obj.free(2 ** 40),
      far: () => heap.obj.free(2 ** 53 - 1),
      size: () => heap.obj.malloc(-1),
      text: () => heap.obj.malloc('8'),
      much: () => bare.obj.malloc(2 ** 50),
      more: () => bare.obj.calloc(2 ** 40, 2 ** 40),
      full: () => bare.obj.malloc(5 << 20),
      all: () => bare.raw.malloc(2n ** 63n - 1n),
      object: () => heap.obj.free(object),
      count: () => (heap.decref(object), heap.decref(object)),
      read: () => heap.obj.read(block, 0, 41),
      write: () => heap.obj.write(block, new Uint8Array(41)),
      closed: () => closed.obj.malloc(8),
      underflow() {
        const address = bare.obj.malloc(8)
        bare.obj.free(address)
        bare.obj.read(address)
      },
      threw: () =>
        bare.setAllocator('raw', {
          malloc: () => {
            throw null
          },
          calloc: () => 7,
          realloc: () => 7,
          free() {},
        }) ?? bare.raw.malloc(9),
      awaited: () =>
        bare.setAllocator('mem', { malloc: async () => 0, calloc: () => 7, realloc: () => 7, free() {} }) ?? bare.mem.malloc(9),
      answer: () => bare.raw.calloc(1, 9),
      posted: () => structuredClone(heap),
    }).map(([what, mistake]) => {
      try {
        return [what, String(mistake())]
      } catch (error) {
        return [what, error.name, error.code, error.cause === null]
      }
    })
  },
}

console.log(JSON.stringify(tasks[task]()))
