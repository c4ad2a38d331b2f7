/** Stacks as trees of numbers, for the flame graph. */

export const NONE = 0xffffffff

/** Node 0 is the root of all; parents come before their children. */
export interface Tree {
  readonly parent: Uint32Array
  /** An index of `frames`; NONE for the root. */
  readonly frame: Uint32Array
  /** Of the node and all below it. */
  readonly total: Float64Array
  readonly self: Float64Array
  /** Of each node, its children, the largest first. */
  readonly children: readonly (readonly number[] | undefined)[]
}

class Builder {
  readonly parent: number[] = [0]
  readonly frame: number[] = [NONE]
  readonly self: number[] = [0]
  readonly #known = new Map<number, number>()

  constructor(readonly frames: number) {}

  /** The child of `parent` for a frame. */
  child(parent: number, frame: number): number {
    const key = parent * this.frames + frame
    const known = this.#known.get(key)
    if (known !== undefined) return known
    const node = this.parent.length
    this.parent.push(parent)
    this.frame.push(frame)
    this.self.push(0)
    this.#known.set(key, node)
    return node
  }

  tree(): Tree {
    const count = this.parent.length
    const total = Float64Array.from(this.self)
    const children: number[][] = []
    for (let node = count - 1; node > 0; node--) {
      total[this.parent[node]!]! += total[node]!
      ;(children[this.parent[node]!] ??= []).push(node)
    }
    for (const some of children) some?.sort((a, b) => total[b]! - total[a]! || a - b)
    return {
      parent: Uint32Array.from(this.parent),
      frame: Uint32Array.from(this.frame),
      self: Float64Array.from(this.self),
      total,
      children,
    }
  }
}

export interface Stacks {
  readonly parent: ArrayLike<number>
  readonly frame: ArrayLike<number>
}

/**
 * The tree of stacks with values of their own. Frames in `hidden` are left out; the frames that they called take their place. Inverted, the
 * innermost frames are the roots, with their callers below.
 */
export function treeOf(
  stacks: Stacks,
  values: ArrayLike<number>,
  frames: number,
  hidden: ReadonlySet<number>,
  inverted: boolean,
): Tree {
  // A node without a frame gets the number after the last frame's.
  const builder = new Builder(frames + 1)
  const frameOf = (node: number) => Math.min(frames, stacks.frame[node]!)
  const made = new Uint32Array(values.length)
  const known = new Uint8Array(values.length)
  const above: number[] = []
  for (let node = 0; node < values.length; node++) {
    const value = values[node]!
    if (!(value > 0)) continue
    let at = 0
    if (inverted) {
      for (let up = node; up !== NONE; up = stacks.parent[up]!) if (!hidden.has(frameOf(up))) at = builder.child(at, frameOf(up))
    } else {
      let up = node
      while (up !== NONE && !known[up]) {
        above.push(up)
        up = stacks.parent[up]!
      }
      at = up === NONE ? 0 : made[up]!
      for (let down = above.pop(); down !== undefined; down = above.pop()) {
        if (!hidden.has(frameOf(down))) at = builder.child(at, frameOf(down))
        made[down] = at
        known[down] = 1
      }
    }
    builder.self[at]! += value
  }
  return builder.tree()
}

/** A node's path from the root, as one number that means the same in every tree of the same frames. */
export function pathOf(tree: Tree, node: number): number {
  let [code, at] = [0, node]
  const path: number[] = []
  for (; at !== 0; at = tree.parent[at]!) path.push(tree.frame[at]!)
  for (const frame of path.reverse()) code = (Math.imul(code, 31) + frame + 1) >>> 0
  return code
}

/** The node with a path, or the root where there is none. */
export function nodeAt(tree: Tree, path: number): number {
  if (path === 0) return 0
  const codes = new Uint32Array(tree.parent.length)
  for (let node = 1; node < codes.length; node++) {
    codes[node] = (Math.imul(codes[tree.parent[node]!]!, 31) + tree.frame[node]! + 1) >>> 0
    if (codes[node] === path) return node
  }
  return 0
}
