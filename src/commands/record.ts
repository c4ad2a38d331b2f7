/** `obmalloc record`: runs a program in a CPython and writes down every allocator call. */

import { existsSync } from 'node:fs'
import { resolve } from 'node:path'

import { interpreterFor } from '../interpreters.js'
import { PlaceError, record } from '../recording.js'
import { exitCode } from '../signals.js'
import { commandOn, next, say } from '../terminal.js'

export interface RecordCommandOptions {
  readonly python?: string
  readonly output: string
  readonly stacks: number
  readonly every: number
  readonly types: boolean
  readonly force?: boolean
  readonly trim?: string
  readonly json?: boolean
}

export async function recordCommand(program: string[], options: RecordCommandOptions): Promise<number> {
  const interpreter = interpreterFor(program, 'record', options.python)
  const print = (result: object) => {
    if (options.json) process.stdout.write(`${JSON.stringify({ ...result, version: interpreter.version })}\n`)
  }
  try {
    // With `--json`, stdout has only the JSON.
    const stdout = options.json ? 'stderr' : 'inherit'
    const { told: _, ...recording } = await record(interpreter, {
      program,
      trace: options.output,
      stdout,
      stacks: options.stacks,
      every: options.every,
      types: options.types,
      ...(options.force ? { force: true } : {}),
      ...(options.trim === undefined ? {} : { trim: options.trim }),
    })
    const { trace, children, ended, events, complete, remarks } = recording
    if (typeof ended === 'string') say(`the program was ended by ${ended}`)
    for (const remark of remarks) say(remark)
    // The program can have removed its trace. Those of the processes that it started are there all the same.
    const isThere = events > 0 && existsSync(trace)
    if (isThere) say(`recorded CPython ${interpreter.version} into ${trace}`)
    for (const child of children) say(`${isThere ? '  and' : 'recorded'} a process that it started into ${child}`)
    if (isThere && !options.json) say(next(commandOn('why', trace === resolve(options.output) ? options.output : trace)))
    print(recording)
    return complete || typeof ended === 'string' ? exitCode(ended) : 4
  } catch (error) {
    if (!(error instanceof PlaceError)) throw error
    say(`obmalloc: ${error.message}`)
    print({ trace: resolve(options.output), children: [], ended: null, events: 0, complete: false, remarks: [error.message] })
    return 4
  }
}
