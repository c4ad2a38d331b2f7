/** The values that a heap keeps in JavaScript: its types, its callbacks, its allocators, and, by number, those that the binding puts there. */

import type { Address, ArenaAllocator, CollectorCallback, HeapOptions } from '../index.js'
import type { Allocators } from './allocators.js'
import type { Face } from './native.js'
import type { Types } from './type.js'

/** No script ever sees one. It has no prototype, so a missing value is undefined, and setting one runs no setter. */
export class Kept {
  /** `gc.garbage` */
  readonly 0: Address[] = []
  /** `gc.callbacks` */
  readonly 1: CollectorCallback[] = []
  /** What the binding calls. */
  readonly face: Face
  readonly onUnraisable: HeapOptions['onUnraisable']
  /** Once there is a handle. */
  types?: Types
  /** Once it is needed. */
  allocators?: Allocators
  /** A script's, where it has put one in. */
  arenas?: ArenaAllocator

  constructor(face: Face, onUnraisable: HeapOptions['onUnraisable']) {
    this.face = face
    this.onUnraisable = onUnraisable
  }
}
Object.setPrototypeOf(Kept.prototype, null)
