/** A program whose values are all of the context that it is compiled in, whatever context the package is of. Gives what it saw. */
globalThis.program = ({ Heap, MemoryFault, MemoryError }) => {
  const log = []
  const told = []
  const heap = new Heap({
    release: '3.13',
    geometry: { poolSize: 4096, arenaSize: 65_536n },
    onUnraisable: (error, { hook }) => told.push(`${hook} ${error.name}: ${error.message}`),
  })
  const misuse = (call) => {
    try {
      call()
    } catch (error) {
      const kind = [MemoryFault, MemoryError].some((kind) => error instanceof kind)
      log.push(`${error.name} ${error.code} ${error.cause?.message} ${kind} ${error.message.replaceAll(/\d{6,}|0x\w+/g, '#')}`)
    }
  }

  const block = heap.mem.malloc(40n)
  heap.mem.write(block, Uint8Array.of(1, 2, 3), 1)
  log.push(heap.mem.read(block, 0, 4).join(), heap.mem.view(block).subarray(0, 4).join())
  heap.mem.free(block)
  heap.run(Uint32Array.of(0, 2, 0, 40, 3, 2, 0, 0), new Float64Array(1))
  misuse(() => heap.mem.free(block))
  misuse(() => heap.raw.free(heap.obj.malloc(8)))
  misuse(() => heap.mem.malloc({ valueOf: () => 8 }))
  misuse(() => heap.mem.malloc(-1))
  misuse(() => heap.run([0, 2, 0, 40]))
  misuse(() => heap.mem.write(heap.mem.malloc(8), new DataView(new ArrayBuffer(8))))
  misuse(() => heap.defineType({ name: 'bad', finalize: class {} }))
  misuse(() => heap.defineType({ name: 'bad', fields: ['object'] }))

  const fields = { next: 'object', count: 'i64' }
  const node = heap.defineType({
    name: 'node',
    gc: true,
    weakrefs: true,
    fields,
    traverse(self, visit) {
      if (node.get(self, 'count') === 13n) throw new RangeError('thirteen')
      if (node.get(self, 'count') === 14n) return Promise.reject(new Error('later'))
      if (node.get(self, 'next') !== null) visit(node.get(self, 'next'))
    },
    finalize() {
      throw new TypeError('from finalize')
    },
  })
  const object = node.alloc()
  node.set(object, 'next', object)
  for (const count of [-5n, 13n, 14n]) {
    node.set(object, 'count', count)
    misuse(() => log.push(node.get(object, 'count') === count, heap.gc.collect(), heap.gc.getReferrers(object).length))
  }
  node.set(object, 'count', 1n)
  heap.gc.callbacks.push((phase, { generation }) => log.push(phase, generation))
  heap.gc.newWeakref(object, () => {
    throw new Error('from a weak reference')
  })
  heap.decref(object)
  heap.gc.collect()

  const { malloc, calloc, realloc, free } = heap.getAllocator('obj')
  heap.setAllocator('obj', { malloc: (size) => (size === 99 ? Promise.resolve(1) : malloc(size)), calloc, realloc, free })
  heap.obj.free(heap.obj.realloc(heap.obj.malloc(100), 200))
  misuse(() => heap.obj.malloc(99))
  const arenas = heap.getArenaAllocator()
  heap.setArenaAllocator({
    alloc: () => {
      throw new SyntaxError('no arena')
    },
    free: (address, size) => arenas.free(address, size),
  })
  misuse(() => {
    for (;;) heap.mem.malloc(512)
  })
  heap.verify()
  log.push(heap.gc.getStats().length, typeof heap.debugMallocStats(), ...told)
  misuse(() => {
    heap.close()
    heap.obj.malloc(1)
  })
  return log.map(String)
}
