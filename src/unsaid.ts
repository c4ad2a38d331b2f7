/** What processes have to say that cannot make the file in which they would: lines in a file that they all can write to. */

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
  /** What the processes need in their environment. */
  readonly variables = { OBMALLOC_UNSAID: this.#path }

  constructor() {
    writeFileSync(this.#path, '', { flag: 'wx' })
    // A process can have other rights by then than the one that started it.
    chmodSync(this.#path, 0o622)
  }

  /** What has been said so far. */
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
