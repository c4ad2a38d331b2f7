/** Messages of processes that cannot make their own file: lines in one file that all of them can write to. */

import { chmodSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { randomBytes } from 'node:crypto'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** A process that could not make its file. */
export interface Unsaid {
  readonly pid: number
  /** The system's words. */
  readonly reason: string
}

/** Makes the file, for one run. */
export class UnsaidFile {
  readonly #path = join(tmpdir(), `obmalloc-unsaid-${randomBytes(8).toString('hex')}`)
  /** The variable that the processes need in their environment. */
  readonly variables = { OBMALLOC_UNSAID: this.#path }

  constructor() {
    writeFileSync(this.#path, '', { flag: 'wx' })
    // A process may have other rights by then than the one that started it.
    chmodSync(this.#path, 0o622)
  }

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
    rmSync(this.#path, { force: true })
  }
}
