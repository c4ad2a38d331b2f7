/** Messages of processes that cannot make their own file: lines in one file that all of them can write to. */

import { readFileSync } from 'node:fs'

import { makeFile, remove } from './temporary.js'

/** A process that could not make its file. */
export interface Unsaid {
  readonly pid: number
  /** The system's words. */
  readonly reason: string
}

/** Makes the file, for one run. */
export class UnsaidFile {
  /** A process may have other rights by the time that it writes than the one that started it. */
  readonly #path = makeFile('obmalloc-unsaid-', 0o622)
  /** The variable that the processes need in their environment. */
  readonly variables = { OBMALLOC_UNSAID: this.#path }

  /** The messages so far. */
  read(): Unsaid[] {
    const lines = readFileSync(this.#path, 'utf8').split('\n').slice(0, -1)
    return lines.flatMap((line) => {
      const [, pid, reason] = /^(\d+) (.*)$/.exec(line) ?? []
      return pid === undefined ? [] : [{ pid: Number(pid), reason: reason! }]
    })
  }

  /** Takes the file away. */
  remove(): void {
    remove(this.#path)
  }
}
