/** A domain's face: made once per heap. */

import type { Address, Domain as Contract, DomainName } from '../index.js'
import { native, on, type DomainCalls, type Handle } from './native.js'

export class Domain implements Contract {
  readonly name: DomainName
  /** Keeps a domain from being posted to another thread as if it were a plain object. */
  protected readonly native: object
  readonly #handle: Handle
  readonly #malloc: DomainCalls['malloc']
  readonly #calloc: DomainCalls['calloc']
  readonly #realloc: DomainCalls['realloc']
  readonly #free: DomainCalls['free']
  readonly #usableSize: DomainCalls['usableSize']
  readonly #view: DomainCalls['view']
  readonly #read: DomainCalls['read']
  readonly #write: DomainCalls['write']

  constructor(name: DomainName, handle: Handle) {
    const calls = native[name]
    this.name = name
    this.native = native.external
    this.#handle = handle
    this.#malloc = calls.malloc
    this.#calloc = calls.calloc
    this.#realloc = calls.realloc
    this.#free = calls.free
    this.#usableSize = calls.usableSize
    this.#view = calls.view
    this.#read = calls.read
    this.#write = calls.write
  }

  malloc(size: number | bigint): Address | null {
    return this.#malloc(size, on(this.#handle))
  }

  calloc(count: number | bigint, size: number | bigint): Address | null {
    return this.#calloc(count, size, on(this.#handle))
  }

  realloc(address: Address | null, size: number | bigint): Address | null {
    return this.#realloc(address, size, on(this.#handle))
  }

  free(address: Address | null): void {
    this.#free(address, on(this.#handle))
  }

  usableSize(address: Address): number {
    return this.#usableSize(address, on(this.#handle))
  }

  view(address: Address): Uint8Array<ArrayBuffer> {
    return this.#view(address, on(this.#handle)) as Uint8Array<ArrayBuffer>
  }

  read(address: Address, offset?: number, length?: number): Uint8Array<ArrayBuffer> {
    return this.#read(address, offset, length, on(this.#handle)) as Uint8Array<ArrayBuffer>
  }

  write(address: Address, bytes: Uint8Array, offset?: number): void {
    this.#write(address, bytes, offset, on(this.#handle))
  }
}
