/** A domain's face: made once per heap. */

import type { Address, Domain as Contract, DomainName, DomainSummary, Size } from '../index.js'
import { badArgument } from './errors.js'
import { inspected, shown, summaryOf } from './inspect.js'
import { LIVE, type Memory } from './memory.js'
import * as binding from './native.js'
import { Handle, native, type DomainCalls } from './native.js'
import {
  Bytes,
  asIntN,
  bufferOf,
  copyBytes,
  getF64,
  getI32,
  getI64,
  getU32,
  getU8,
  lengthOf,
  offsetOf,
  setF64,
  setI32,
  setI64,
  setU32,
  setU8,
  tagOf,
} from './primordials.js'

/** Constants of this module, because each use of an import is a look into the other module's exports. */
const { on, onNumber } = binding

/** Up to this many bytes, a loop in JavaScript copies faster than a call. */
const FEW = 64

export class Domain implements Contract {
  readonly name: DomainName
  /** Keeps a domain from being posted to another thread as if it were a plain object. */
  protected readonly native: object
  readonly #handle: Handle
  readonly #number: number
  readonly #memory: Memory
  readonly #live: number
  readonly #malloc: DomainCalls['malloc']
  readonly #calloc: DomainCalls['calloc']
  readonly #realloc: DomainCalls['realloc']
  readonly #free: DomainCalls['free']
  readonly #usableSize: DomainCalls['usableSize']
  readonly #view: DomainCalls['view']
  readonly #read: DomainCalls['read']
  readonly #write: DomainCalls['write']
  readonly #get: DomainCalls['get']
  readonly #set: DomainCalls['set']

  constructor(name: DomainName, handle: Handle, memory: Memory) {
    if (!Handle.is(handle)) throw badArgument('ERR_INVALID_ARG_TYPE', 'Domain', 'a domain of a heap instead', handle)
    const calls = native[name]
    this.name = name
    this.native = native.external
    this.#handle = handle
    this.#number = handle.number
    this.#memory = memory
    this.#live = LIVE[name]
    this.#malloc = calls.malloc
    this.#calloc = calls.calloc
    this.#realloc = calls.realloc
    this.#free = calls.free
    this.#usableSize = calls.usableSize
    this.#view = calls.view
    this.#read = calls.read
    this.#write = calls.write
    this.#get = calls.get
    this.#set = calls.set
  }

  malloc(size: Size): Address | null {
    return this.#malloc(size, onNumber(this.#handle, this.#number))
  }

  calloc(count: Size, size: Size): Address | null {
    return this.#calloc(count, size, onNumber(this.#handle, this.#number))
  }

  realloc(address: Address | null, size: Size): Address | null {
    return this.#realloc(address, size, onNumber(this.#handle, this.#number))
  }

  free(address: Address | null): void {
    this.#free(address, onNumber(this.#handle, this.#number))
  }

  usableSize(address: Address): number {
    return this.#usableSize(address, onNumber(this.#handle, this.#number))
  }

  view(address: Address): Uint8Array<ArrayBuffer> {
    return this.#view(address, on(this.#handle)) as Uint8Array<ArrayBuffer>
  }

  read(address: Address, offset: Size = 0, length?: Size): Uint8Array<ArrayBuffer> {
    if (typeof length === 'number' && length <= FEW && length >>> 0 === length) {
      const at = this.#memory.find(address, this.#live, length, offset)
      if (at >= 0) {
        const copy = new Bytes(length)
        const { bytes } = this.#memory.place
        for (let index = 0; index < length; index++) copy[index] = bytes[at + index]!
        return copy
      }
    }
    return this.#read(address, offset, length, on(this.#handle)) as Uint8Array<ArrayBuffer>
  }

  write(address: Address, bytes: Uint8Array, offset: Size = 0): void {
    const length = tagOf(bytes) === 'Uint8Array' ? lengthOf(bytes) : 0
    const at = length === 0 ? -1 : this.#memory.find(address, this.#live, length, offset)
    if (at < 0) this.#write(address, bytes, offset, on(this.#handle))
    // Another thread may make shared memory, and so the array, longer at any time: copy only the length that was checked.
    else copyBytes(this.#memory.place.bytes, new Bytes(bufferOf(bytes as Uint8Array<ArrayBuffer>), offsetOf(bytes), length), at)
  }

  getUint8(address: Address, offset: Size = 0): number {
    const at = this.#memory.find(address, this.#live, 1, offset)
    return at < 0 ? (this.#get(address, 'u8', offset, on(this.#handle)) as number) : getU8(this.#memory.place.view, at)
  }

  setUint8(address: Address, value: number, offset: Size = 0): void {
    const at = typeof value === 'number' && (value & 255) === value ? this.#memory.find(address, this.#live, 1, offset) : -1
    if (at < 0) this.#set(address, 'u8', value, offset, on(this.#handle))
    else setU8(this.#memory.place.view, at, value)
  }

  getInt32(address: Address, offset: Size = 0): number {
    const at = this.#memory.find(address, this.#live, 4, offset)
    return at < 0 ? (this.#get(address, 'i32', offset, on(this.#handle)) as number) : getI32(this.#memory.place.view, at)
  }

  setInt32(address: Address, value: number, offset: Size = 0): void {
    const at = typeof value === 'number' && (value | 0) === value ? this.#memory.find(address, this.#live, 4, offset) : -1
    if (at < 0) this.#set(address, 'i32', value, offset, on(this.#handle))
    else setI32(this.#memory.place.view, at, value)
  }

  getUint32(address: Address, offset: Size = 0): number {
    const at = this.#memory.find(address, this.#live, 4, offset)
    return at < 0 ? (this.#get(address, 'u32', offset, on(this.#handle)) as number) : getU32(this.#memory.place.view, at)
  }

  setUint32(address: Address, value: number, offset: Size = 0): void {
    const at = typeof value === 'number' && value >>> 0 === value ? this.#memory.find(address, this.#live, 4, offset) : -1
    if (at < 0) this.#set(address, 'u32', value, offset, on(this.#handle))
    else setU32(this.#memory.place.view, at, value)
  }

  getFloat64(address: Address, offset: Size = 0): number {
    const at = this.#memory.find(address, this.#live, 8, offset)
    return at < 0 ? (this.#get(address, 'f64', offset, on(this.#handle)) as number) : getF64(this.#memory.place.view, at)
  }

  setFloat64(address: Address, value: number, offset: Size = 0): void {
    const at = typeof value === 'number' ? this.#memory.find(address, this.#live, 8, offset) : -1
    if (at < 0) this.#set(address, 'f64', value, offset, on(this.#handle))
    else setF64(this.#memory.place.view, at, value)
  }

  getBigInt64(address: Address, offset: Size = 0): bigint {
    const at = this.#memory.find(address, this.#live, 8, offset)
    return at < 0 ? (this.#get(address, 'i64', offset, on(this.#handle)) as bigint) : getI64(this.#memory.place.view, at)
  }

  setBigInt64(address: Address, value: bigint | number, offset: Size = 0): void {
    const fits = typeof value === 'bigint' && asIntN(64, value) === value
    const at = fits ? this.#memory.find(address, this.#live, 8, offset) : -1
    if (at < 0) this.#set(address, 'i64', value, offset, on(this.#handle))
    else setI64(this.#memory.place.view, at, value as bigint)
  }

  toJSON(): DomainSummary {
    return { name: this.name, heap: summaryOf(this.#handle) }
  }

  [inspected](): string {
    return shown('Domain', { name: this.name, heap: summaryOf(this.#handle) })
  }
}
