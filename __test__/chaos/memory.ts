/**
 * What a program of chaos knows of the memory that it was given: a copy of the bytes of each block and grant, and every array over them. Throws
 * `Broken` if something is not as the contract promises.
 */

import { isDeepStrictEqual } from 'node:util'

import { MemoryFault, type Address, type Allocator, type Domain, type Heap } from 'obmalloc'

import { transfer } from '../tools.ts'

/** Whatever gives memory: a domain, or an allocator. Calls come here first, so that they are noticed also inside a script's allocator. */
export interface Source {
  readonly heap: Heap
  readonly calls: Allocator
  /** None for an allocator. */
  readonly domain?: Domain
}

/** A block that a domain gave, or a grant, which an allocator gave when it was called directly. */
export class Block {
  readonly heap: Heap
  domain: Domain | undefined
  address: Address
  /** Bytes that were asked for. */
  size: number
  /** The bytes that it must hold. They are fewer than the block has while the rest is unspecified and has not been read. */
  bytes: Uint8Array
  view: Uint8Array | undefined
  /** Arrays over its bytes that the heap cannot detach. */
  readonly escaped: Uint8Array[] = []
  /** Whether the view may have been detached. */
  loose = false
  /** Whether a call is about it just now. */
  busy = false
  /** Whether a grant may have blocks in it, whose bytes are theirs. */
  lent = false

  constructor(source: Source, address: Address, size: number, bytes = new Uint8Array(0)) {
    this.heap = source.heap
    this.domain = source.domain
    this.address = address
    this.size = size
    this.bytes = bytes
  }
}

/** The contract was broken. */
export class Broken extends Error {
  constructor(message: string, cause?: unknown) {
    super(message, { cause })
  }
}

const codeOf = (error: unknown): string | undefined => (error as { code?: string }).code
/** The code of what a call throws, if it throws. */
function thrown(call: () => unknown): string | undefined {
  try {
    call()
    return undefined
  } catch (error) {
    return codeOf(error)
  }
}
/** The heap cannot be used now, or the block cannot: it lies in memory of an allocator that is resizing it. */
const isLater = (error: unknown): boolean => ['ERR_REENTRANT', 'ERR_GC_IN_PROGRESS'].includes(codeOf(error)!)
/** A script's `free` threw, or gave a wrong result. The block is freed all the same. */
const isScripts = (error: unknown): boolean => ['ERR_CALLBACK_THREW', 'ERR_CALLBACK_RESULT'].includes(codeOf(error)!)
const same = (one: Uint8Array, other: Uint8Array): boolean => isDeepStrictEqual(Buffer.from(one), Buffer.from(other))

const KEPT_MAX = 20
const SLOTS = 24

export class Memory {
  readonly blocks: Block[] = []
  /** Arrays over the memory of freed blocks, and the bytes that each must go on showing. */
  readonly ghosts: Array<{ address: Address; arrays: Uint8Array[]; bytes: Uint8Array }> = []
  /** Addresses that were good once. */
  readonly gone: Array<{ heap: Heap; address: Address }> = []
  /** Memory that scripts' allocators use. The program must not free it, because they would not know. */
  readonly #held = new Set<Address>()
  /** The addresses in a heap's slots, as far as they are known. */
  readonly #slots = new Map<Heap, Array<Address | 0 | undefined>>()
  readonly #random: (below: number) => number
  readonly #expected: (error: unknown) => void
  /** How often a script was called that may do anything. */
  moods = 0
  /** Whether a script was ever put in. */
  scripted = false

  constructor(random: (below: number) => number, expected: (error: unknown) => void) {
    this.#random = random
    this.#expected = expected
  }

  find(heap: Heap, address: number): Block | undefined {
    const found = this.blocks.filter((block) => block.heap === heap && block.address === address)
    return found.find((block) => block.domain) ?? found[0]
  }

  /** Lets a heap do what is due, so that no callback comes before the next call. */
  #doWhatIsDue(heap: Heap): void {
    try {
      heap.allocatedBlocks()
    } catch (error) {
      this.#expected(error)
    }
  }

  #isReady(block: Block): boolean {
    this.#doWhatIsDue(block.heap)
    return this.blocks.includes(block) && !block.busy
  }

  #add(block: Block): Block {
    const other = this.find(block.heap, block.address)
    // A script may have answered with part of another source's grant. Such a grant is lent.
    if (other && !other.busy && !other.lent && !other.domain === !block.domain)
      throw new Broken(`${block.address} was given out twice`)
    this.blocks.push(block)
    return block
  }

  #remove(block: Block): void {
    const index = this.blocks.indexOf(block)
    if (index >= 0) this.blocks.splice(index, 1)
  }

  /** The block's memory has another owner from now on. */
  #leave(block: Block): void {
    if (block.view && block.view.length > 0) throw new Broken(`the view of ${block.address} was not detached`)
    block.view = undefined
    const arrays = block.escaped.splice(0)
    if (arrays.length > 0) this.ghosts.push({ address: block.address, arrays, bytes: arrays[0]!.slice() })
    while (this.ghosts.length > KEPT_MAX) this.ghosts.splice(this.#random(this.ghosts.length), 1)
    this.gone.push({ heap: block.heap, address: block.address })
    if (this.gone.length > 100) this.gone.splice(this.#random(100), 1)
  }

  #end(block: Block): void {
    this.#remove(block)
    this.#leave(block)
    const { address, domain } = block
    if (!domain) return
    if (this.#isThere(block)) throw new Broken(`${address} is there after it was freed`)
    // The memory may have become a grant. A window must say the same of it as a call.
    const [byCall, few, byte] = [
      () => domain.read(address),
      () => domain.read(address, 0, 0),
      () => domain.getUint8(address),
    ].map(thrown)
    if (few !== byCall || (byte !== byCall && byte !== 'ERR_OUT_OF_RANGE')) throw new Broken(`two answers about ${address}`)
  }

  /** The block is where it is now, with its bytes up to the smaller size unless others may have written to them. */
  #moved(block: Block, at: Address, size: number, sound: boolean): void {
    if (at === block.address) block.loose = true
    else this.#leave(block)
    block.address = at
    block.size = size
    block.bytes = block.bytes.slice(0, sound ? size : 0)
  }

  /** A block or a grant. */
  take(source: Source, address: Address | null, size: number, zeroed = false): void {
    if (address === null) return
    this.look(this.#add(new Block(source, address, size, new Uint8Array(zeroed ? size : 0))))
  }

  /** Looks at a block, in every way there is. */
  look(block: Block): void {
    if (block.view?.length === 0 && block.loose) block.view = undefined
    if (!this.#isReady(block) || block.lent) return
    const { address, domain, heap, view } = block
    let bytes: Uint8Array
    try {
      bytes = (domain ?? heap.raw).read(address)
      if (domain && domain.usableSize(address) !== bytes.length) throw new Broken(`two sizes of ${address}`)
      this.#lookWithoutCall(domain ?? heap.raw, address, bytes)
    } catch (error) {
      if (isLater(error)) return
      throw new Broken(`${domain ? 'a block' : 'a grant'} of ${block.size} bytes at ${address} cannot be read`, error)
    }
    if (bytes.length < block.bytes.length || bytes.length < block.size) throw new Broken(`${address} has become shorter`)
    if (!same(bytes.subarray(0, block.bytes.length), block.bytes)) throw new Broken(`something else wrote to ${address}`)
    for (const array of view ? [view, ...block.escaped] : block.escaped) {
      // A block that was a script's becomes as large as its size class when the memory's own allocator is put back.
      if (array.length < block.size || !same(array, bytes.subarray(0, array.length))) {
        throw new Broken(`an array of ${array.length} of the ${bytes.length} bytes at ${address} shows something else`)
      }
    }
    block.loose = false
    block.bytes = bytes
  }

  /** A window must show the same bytes as a call, and end where the block ends. */
  #lookWithoutCall(domain: Domain, address: Address, bytes: Uint8Array): void {
    const at = this.#random(bytes.length + 1)
    const few = bytes.subarray(at, at + 20)
    if (!same(domain.read(address, at, few.length), few)) throw new Broken(`two answers about ${address}`)
    if (at < bytes.length && domain.getUint8(address, at) !== bytes[at]) throw new Broken(`two bytes at ${address}`)
    try {
      domain.setUint8(address, 0, bytes.length)
    } catch (error) {
      if (codeOf(error) === 'ERR_OUT_OF_RANGE' || isLater(error)) return
      throw error
    }
    throw new Broken(`${address} can be written to beyond its end`)
  }

  lookAtGhosts(): void {
    for (const { address, arrays, bytes } of this.ghosts) {
      if (!arrays.every((array) => same(array, bytes)))
        throw new Broken(`memory at ${address} that an array shows was used again`)
    }
  }

  lookAtView(block: Block): Uint8Array | undefined {
    if (!block.domain || !this.#isReady(block)) return undefined
    const view = block.domain.view(block.address)
    this.look(block)
    if (block.view && block.view.length > 0 && block.view !== view) throw new Broken(`two views of ${block.address}`)
    block.view = view
    this.look(block)
    return view
  }

  /** The program detaches the view, and keeps its bytes under another name where that is possible. */
  detach(block: Block): void {
    const view = this.lookAtView(block)
    if (!view) return
    const { buffer } = view
    const other = this.#random(2) === 0 ? transfer(buffer) : posted(buffer as ArrayBuffer)
    // Node.js 20 copies what is posted, later ones refuse to post it.
    if (view.length > 0) return
    block.view = undefined
    if (other.byteLength > 0) block.escaped.push(new Uint8Array(other))
  }

  /** Writes to a block by one of the arrays over it, or by a call; what it writes may be bytes of the same heap, and of the same block. */
  write(block: Block): void {
    this.look(block)
    if (!this.#isReady(block) || block.lent) return
    const random = this.#random
    const { bytes, view, escaped, domain, heap, address } = block
    const arrays = [view, ...escaped].filter((array) => array !== undefined && array.length > 0) as Uint8Array[]
    const from = random(bytes.length + 1)
    const to = from + random(bytes.length - from + 1)
    if (arrays.length > 0 && random(2) === 0) {
      const [byte, array] = [random(256), arrays[random(arrays.length)]!]
      array.fill(byte, from, to)
      bytes.fill(byte, from, Math.min(to, array.length))
    } else {
      // Closing detaches the views of a heap before it asks scripts.
      const others = this.blocks.flatMap((other) => (other.view && other.view.length > 0 && !other.busy ? [other.view] : []))
      const all = [...arrays, ...others, ...this.ghosts.map(({ arrays }) => arrays[0]!), Uint8Array.of(random(256), 1, 2, 3)]
      const source = all[random(all.length)]!
      const length = Math.min(source.length, to - from)
      const start = random(source.length - length + 1)
      const part = source.subarray(start, start + length)
      const written = part.slice()
      try {
        ;(domain ?? heap.raw).write(address, part, from)
        bytes.set(written, from)
      } catch (error) {
        if (!isLater(error)) throw new Broken(`${address} cannot be written to`, error)
      }
    }
    this.look(block)
  }

  /** Writes to a block that is no more. */
  haunt(): void {
    if (this.ghosts.length === 0) return
    const { arrays, bytes } = this.ghosts[this.#random(this.ghosts.length)]!
    const byte = this.#random(256)
    arrays[this.#random(arrays.length)]!.fill(byte)
    bytes.fill(byte)
  }

  /** Called when a domain could not free or resize a grant. Finds out whether the grant has become the domain's block. */
  #findKind(block: Block, source: Source): void {
    if (block.domain || !source.domain) return
    try {
      source.domain.usableSize(block.address)
      block.domain = source.domain
    } catch (error) {
      this.#expected(error)
    }
  }

  resize(block: Block, source: Source, size: number): void {
    if (!this.#isReady(block)) return
    const moods = this.moods
    block.busy = true
    // While an allocator resizes a grant, it may give its address to another block.
    if (!block.domain) this.#remove(block)
    try {
      const at = source.calls.realloc(block.address, size)
      if (at === null) block.loose = this.scripted
      else {
        const moved = this.#goneInstead(block) ?? block
        if (!moved.domain) moved.domain = source.domain
        this.#moved(moved, at, size, moods === this.moods)
      }
    } catch (error) {
      this.#expected(error)
      this.#failed(block, size, error, moods)
    }
    block.busy = false
    if (!this.blocks.includes(block)) this.#add(block)
    this.#findKind(block, source)
    this.look(block)
  }

  /** A `realloc` has failed: the block is as it was, unless the error says that an allocator of the heap's own had resized it by then. */
  #failed(block: Block, size: number, error: unknown, moods: number): void {
    block.loose = this.scripted
    const { address } = error as { address?: Address }
    if (!isScripts(error) || address === undefined) return
    this.#moved(block, address, Math.min(block.size, size), moods === this.moods)
  }

  free(block: Block, source: Source): void {
    if (!this.#isReady(block)) return
    block.busy = true
    let done = true
    try {
      source.calls.free(block.address)
    } catch (error) {
      this.#expected(error)
      done = isScripts(error)
      block.loose = this.scripted
    }
    block.busy = false
    const other = done ? this.#goneInstead(block) : undefined
    if (other) this.#end(other)
    else if (done) this.#end(block)
    else this.#findKind(block, source)
    this.look(block)
  }

  /**
   * The domain's block that has gone instead of the grant which begins at the same address: a script answered with that grant, and the allocator
   * that was called is the one that had asked the script.
   */
  #goneInstead({ heap, address, domain }: Block): Block | undefined {
    if (domain) return undefined
    return this.blocks.find(
      (other) => other.domain && other.heap === heap && other.address === address && !other.busy && !this.#isThere(other),
    )
  }

  /** Frees or resizes what may lie at an address, or be there no more. */
  touch(source: Source, address: Address, size?: number): void {
    this.#doWhatIsDue(source.heap)
    const block = this.find(source.heap, address)
    if (!block && this.#held.has(address)) return
    if (block && size === undefined) this.free(block, source)
    else if (block) this.resize(block, source, size!)
    else if (size === undefined) source.calls.free(address)
    else source.calls.realloc(address, size)
  }

  /** A block becomes what `init` makes of it. */
  give<T>(block: Block, init: (address: Address) => T): T | undefined {
    if (!this.#isReady(block)) return undefined
    const made = init(block.address)
    this.#remove(block)
    this.#leave(block)
    return made
  }

  /** A source for a script's allocator to call. What the script frees may be a block of the program's. */
  inside({ heap, calls, domain }: Source): Allocator {
    const given = (address: Address | null): Address | null => {
      if (address !== null) this.#held.add(address)
      return address
    }
    const freed = (address: Address | null): void => {
      this.#held.delete(address!)
      for (const block of this.blocks.filter((block) => block.heap === heap && block.address === address && !block.busy)) {
        if (domain || !block.domain || !this.#isThere(block)) this.#remove(block)
      }
    }
    return {
      malloc: (size) => given(calls.malloc(size)),
      calloc: (count, size) => given(calls.calloc(count, size)),
      realloc: (address, size) => {
        const at = calls.realloc(address, size)
        if (at !== null) freed(address)
        return given(at)
      },
      free: (address) => {
        calls.free(address)
        freed(address)
      },
    }
  }

  #isThere(block: Block): boolean {
    try {
      block.domain!.usableSize(block.address)
      return true
    } catch (error) {
      return isLater(error)
    }
  }

  /** Notes that a script has answered a heap with this address. The grant that lies there may be lent now. */
  lend(address: unknown): void {
    for (const block of this.blocks) {
      const offset = Number(address) - block.address
      if (block.busy || !(offset >= 0 && offset < Math.max(block.size, block.bytes.length, 1))) continue
      block.bytes = block.bytes.slice(0, 0)
      block.loose = true
      block.lent = !block.domain
    }
  }

  /** Many operations in one call; each slot is used once. */
  batch(heap: Heap): void {
    const random = this.#random
    this.#doWhatIsDue(heap)
    const slots = this.#slots.get(heap) ?? Array.from<0>({ length: SLOTS }).fill(0)
    this.#slots.set(heap, slots)
    const order = Array.from({ length: SLOTS }, (_, slot) => slot).filter(() => random(3) === 0)
    const operations = order.map((slot) => {
      const verb = slots[slot] === undefined ? random(2) : random(4)
      const held = this.find(heap, slots[slot] ?? 0)
      const domain = held?.domain && random(10) > 0 ? held.domain : heap[(['raw', 'mem', 'obj'] as const)[random(3)]!]
      return { verb, domain, slot, size: random(3) === 0 ? random(3000) : random(300) }
    })
    const names = ['raw', 'mem', 'obj']
    const numbers = operations.flatMap(({ verb, domain, slot, size }) => [verb, names.indexOf(domain.name), slot, size])
    const addresses = new Float64Array(SLOTS)
    const held = order.flatMap((slot) => this.blocks.filter((block) => block.heap === heap && block.address === slots[slot]))
    for (const block of held) block.busy = true
    const moods = this.moods
    let fault: { index?: number } | undefined
    try {
      heap.run(Uint32Array.from(numbers), addresses)
    } catch (error) {
      this.#expected(error)
      fault = error as MemoryFault
    }
    for (const block of held) block.busy = false
    const done = fault ? (fault.index ?? -1) : operations.length
    const ended: Block[] = []
    for (const [index, { verb, domain, slot, size }] of operations.entries()) {
      if (index > done) break
      const old = slots[slot] ?? 0
      const block = this.find(heap, old)
      const at = addresses[slot] as Address | 0
      if (index === done) {
        if (verb === 3 && isScripts(fault) && block) ended.push(block)
        if (verb === 2 && block) this.#failed(block, size, fault, moods)
        if (block) this.#findKind(block, { heap, calls: domain, domain })
        slots[slot] = undefined
      } else if (verb === 3) {
        if (block) ended.push(block)
      } else if (verb === 2 && old !== 0) {
        if (block && at === 0) block.loose = this.scripted
        else if (block) this.#moved(block, at as Address, size, moods === this.moods)
        if (block) this.#findKind(block, { heap, calls: domain, domain })
        if (at !== 0) slots[slot] = at
      } else {
        slots[slot] = at
        const bytes = new Uint8Array(verb === 1 ? size : 0)
        if (at !== 0) held.push(this.#add(new Block({ heap, domain, calls: domain }, at, size, bytes)))
      }
      for (const block of ended.splice(0)) {
        this.#remove(block)
        this.#leave(block)
      }
    }
    for (const block of held) this.look(block)
  }

  lookAtAll(): void {
    this.lookAtGhosts()
    for (const block of this.blocks.slice()) this.look(block)
  }

  /** A heap has been closed. */
  end(heap: Heap): void {
    for (const block of this.blocks.filter((block) => block.heap === heap)) {
      this.#remove(block)
      this.#leave(block)
    }
    for (let left = this.gone.length - 1; left >= 0; left--) if (this.gone[left]!.heap === heap) this.gone.splice(left, 1)
    this.lookAtGhosts()
  }
}

/** Transfers a buffer with a message and returns what arrives, or the buffer itself if it cannot be transferred. */
function posted(buffer: ArrayBuffer): ArrayBuffer {
  try {
    return structuredClone(buffer, { transfer: [buffer] })
  } catch (error) {
    if ((error as Error).name !== 'DataCloneError') throw error
    return buffer
  }
}
