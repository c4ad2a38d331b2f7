/** Running a Python program under the recorder, which is also the checker. */

import { spawn } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'

import type { Interpreter } from './interpreters.js'
import { recorder } from './tools.js'

export interface Recording {
  /** The trace of the process itself. */
  readonly trace: string
  /** Traces of the processes that it started. */
  readonly children: string[]
  /** How it ended: an exit code, or the name of a signal. */
  readonly ended: number | NodeJS.Signals
}

export interface RecordOptions {
  /** What Python is to be run with: a script and its arguments, or `-m module`, or `-c code`. */
  readonly program: readonly string[]
  /** Where the trace goes. */
  readonly trace: string
  /** Where the program's own output goes. */
  readonly stdout: 'inherit' | 'ignore' | 'stderr'
  readonly env?: Record<string, string>
}

/** Records one run. */
export async function record(interpreter: Pick<Interpreter, 'path'>, options: RecordOptions): Promise<Recording> {
  const trace = resolve(options.trace)
  const ended = await run(interpreter, options, { ...options.env, OBMALLOC_TRACE: trace })
  return { trace, children: children(trace), ended }
}

/** What a user, or who started us, ends a program with. */
export const SIGNALS: readonly NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGHUP']

/** Runs a program with the recorder loaded, and waits for its end: an exit code, or the name of a signal. */
export async function run(
  interpreter: Pick<Interpreter, 'path'>,
  { program, stdout }: Pick<RecordOptions, 'program' | 'stdout'>,
  variables: Record<string, string>,
): Promise<number | NodeJS.Signals> {
  const env: NodeJS.ProcessEnv = { ...process.env }
  // What an outer recorder or checker may have left.
  for (const task of ['TRACE', 'CHECK']) for (const rest of ['', '_PID']) delete env[`OBMALLOC_${task}${rest}`]
  Object.assign(env, variables, { LD_PRELOAD: [recorder(), process.env['LD_PRELOAD']].filter(Boolean).join(' ') })
  const child = spawn(interpreter.path, program, { env, stdio: ['inherit', stdout === 'stderr' ? 2 : stdout, 'inherit'] })
  // The program is to end as it would by itself, and what was seen until then is to be told. A terminal interrupts both at once.
  const passOn = (signal: NodeJS.Signals): void => {
    if (signal !== 'SIGINT') child.kill(signal)
  }
  for (const signal of SIGNALS) process.on(signal, passOn)
  try {
    return await new Promise((done, failed) => {
      child.on('error', failed)
      child.on('exit', (code, signal) => done(code ?? signal ?? 1))
    })
  } finally {
    for (const signal of SIGNALS) process.off(signal, passOn)
  }
}

/** What the processes wrote that the one which wrote `path` started. */
export function children(path: string): string[] {
  const isChild = (name: string) => name.startsWith(`${basename(path)}.`) && /\.\d+$/.test(name)
  return readdirSync(dirname(path))
    .filter(isChild)
    .sort()
    .map((name) => join(dirname(path), name))
}
