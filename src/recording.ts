/** Running a Python program under the recorder. */

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
  const preload = [recorder(), process.env['LD_PRELOAD']].filter(Boolean).join(' ')
  const env: NodeJS.ProcessEnv = { ...process.env, ...options.env, LD_PRELOAD: preload, OBMALLOC_TRACE: trace }
  delete env['OBMALLOC_TRACE_PID']
  const stdout = options.stdout === 'stderr' ? 2 : options.stdout
  const child = spawn(interpreter.path, options.program, { env, stdio: ['inherit', stdout, 'inherit'] })
  const ended = await new Promise<number | NodeJS.Signals>((done, failed) => {
    child.on('error', failed)
    child.on('exit', (code, signal) => done(code ?? signal ?? 1))
  })
  const isChild = (name: string) => name.startsWith(`${basename(trace)}.`) && /\.\d+$/.test(name)
  const children = readdirSync(dirname(trace))
    .filter(isChild)
    .sort()
    .map((name) => join(dirname(trace), name))
  return { trace, children, ended }
}
