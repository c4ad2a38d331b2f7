/** A program that runs behind `obmalloc-run`, which sees what Node.js cannot: the signals of a whole group, and how a program ends. */

import { type ChildProcess, spawn, type StdioOptions } from 'node:child_process'
import { constants } from 'node:os'
import type { Duplex } from 'node:stream'

import { signalNamed } from './signals.js'
import { runner } from './tools.js'

/** Added to a signal's number: the program gets the signal even if the other processes of its group have got it already. */
const ALONE = 0x80

export class Started {
  /** The `obmalloc-run` process. The program uses its stdin, stdout and stderr. */
  readonly between: ChildProcess
  /** How the program ended: an exit code, or the name of a signal. */
  readonly ended: Promise<number | string>
  /** The program's number, once it runs. */
  pid: number | undefined
  readonly #way: Duplex

  /** Starts a program. `preloaded` is its `LD_PRELOAD`, if that is another than in `env`. */
  constructor(
    path: string,
    program: readonly string[],
    {
      env,
      stdio,
      preloaded = '',
    }: { env: NodeJS.ProcessEnv; stdio: readonly ('inherit' | 'ignore' | 'pipe' | number)[]; preloaded?: string },
  ) {
    this.between = spawn(runner(), [preloaded, path, ...program], { env, stdio: [...stdio, 'pipe'] as StdioOptions })
    this.#way = this.between.stdio[3] as Duplex
    let said = ''
    this.#way.setEncoding('utf8').on('data', (text: string) => {
      said += text
      this.pid ??= Number(/^runs (\d+)\n/.exec(said)?.[1] ?? Number.NaN) || undefined
    })
    // It is gone: the program has ended.
    this.#way.on('error', () => {})
    this.ended = new Promise((done, failed) => {
      this.between.on('error', failed)
      this.between.on('close', (_, signal) => {
        const [word, rest] = /(?:^|\n)(exited|killed|fails) (.*)\n$/.exec(said)?.slice(1) ?? []
        if (word === 'exited') done(Number(rest))
        else if (word === 'killed') done(signalNamed(Number(rest)))
        else if (word === 'fails') failed(new Error(`cannot run ${path}: ${rest}`))
        else done(signal ?? 'SIGKILL')
      })
    })
  }

  /** Passes on a signal that we have got, unless the program has it too: it was sent to our group. */
  pass(signal: NodeJS.Signals): void {
    this.#tell(constants.signals[signal])
  }

  /** Sends a signal to the program. */
  send(signal: NodeJS.Signals): void {
    this.#tell(constants.signals[signal] | ALONE)
  }

  #tell(byte: number): void {
    if (this.#way.writable) this.#way.write(Uint8Array.of(byte))
  }
}
