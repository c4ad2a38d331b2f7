/** What a heap keeps in JavaScript: its types, its callbacks, its allocators, and by number whatever the binding puts there. */

import type { Address, ArenaAllocator, CollectorCallback, HeapOptions } from '../index.js'
import type { Allocators } from './allocators.js'
import type { Face } from './native.js'
import type { Types } from './type.js'

/** It has no prototype, and no script ever sees it. So what is not in it is undefined, and setting it runs no setter. */
export interface Kept {
  /** `gc.garbage` */
  readonly 0: Address[]
  /** `gc.callbacks` */
  readonly 1: CollectorCallback[]
  /** What the binding calls. */
  readonly face: Face
  readonly onUnraisable: HeapOptions['onUnraisable']
  /** These two once there is a handle. */
  types?: Types
  allocators?: Allocators
  /** A script's, where it has put one in. */
  arenas?: ArenaAllocator
}

export function newKept(face: Face, onUnraisable: HeapOptions['onUnraisable']): Kept {
  return { __proto__: null, 0: [], 1: [], face, onUnraisable } as unknown as Kept
}
