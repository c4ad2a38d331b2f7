/** Pools and blocks, one after the other. */

import type { Address, BlockInfo, Geometry, PoolInfo } from '../index.js'
import { fault } from './errors.js'
import { native, on, type Handle } from './native.js'
import { hex, lengthOf } from './primordials.js'

const { checkArena, checkPool, pool, poolBlocks } = native

/** Bytes at the head of a pool that hold no block (`POOL_OVERHEAD`). */
const OVERHEAD = 48

const sizeOfBlocks = (sizeClass: number, { alignment }: Geometry): number => (sizeClass + 1) * alignment

function poolAt(handle: Handle, address: number, geometry: Geometry): PoolInfo | undefined {
  const numbers = pool(address, on(handle))
  if (numbers === null) return undefined
  const sizeClass = numbers[0]!
  const used = numbers[1]!
  const free = numbers[2]!
  return {
    address: address as Address,
    state: used === 0 ? 'empty' : free === 0 ? 'full' : 'used',
    sizeClass: sizeClass < 0 ? null : sizeClass,
    blockSize: sizeClass < 0 ? null : sizeOfBlocks(sizeClass, geometry),
    used,
    free,
  }
}

/** The pools of an arena, each looked at when it is its turn. */
export function poolsOf(handle: Handle, arena: Address, geometry: Geometry): Generator<PoolInfo, void, void> {
  checkArena(arena, on(handle))
  return eachPool(handle, arena, geometry)
}

function* eachPool(handle: Handle, arena: Address, geometry: Geometry): Generator<PoolInfo, void, void> {
  const { arenaSize, poolSize } = geometry
  // The first whole one, and those that end within the arena.
  const first = arena + ((poolSize - (arena % poolSize)) % poolSize)
  for (let address = first; address + poolSize <= arena + arenaSize; address += poolSize) {
    const info = poolAt(handle, address, geometry)
    if (info === undefined) throw gone(arena)
    yield info
  }
}

function gone(arena: Address): Error {
  return fault('ERR_USE_AFTER_FREE', `expected an arena that is held, but 0x${hex(arena, 16)} has been given back`, arena)
}

/** The blocks of a pool, as they are now. */
export function blocksOf(handle: Handle, address: Address, geometry: Geometry): Generator<BlockInfo, void, void> {
  checkPool(address, on(handle))
  const { blockSize } = poolAt(handle, address, geometry)!
  return eachBlock(address + OVERHEAD, blockSize ?? 0, poolBlocks(address, on(handle)))
}

function* eachBlock(first: number, size: number, states: Uint8Array): Generator<BlockInfo, void, void> {
  const count = lengthOf(states)
  for (let index = 0; index < count; index++) {
    yield { address: (first + index * size) as Address, used: states[index] === 1 }
  }
}
