/** `obmalloc trim`: runs a program in a CPython and gives back to the system what it holds and does not use. */

import { interpreterFor } from '../interpreters.js'
import { writeNew } from '../output.js'
import { exitCode } from '../signals.js'
import { bytes } from '../size.js'
import { grouped, say } from '../terminal.js'
import { recorder } from '../tools.js'
import { runTrimmed, type TrimmedProcess, type TrimWords } from '../trimming.js'

export interface TrimCommandOptions extends TrimWords {
  readonly python?: string
  readonly path?: boolean
  readonly json?: boolean
  readonly output?: string
  readonly force?: boolean
}

export async function trimCommand(program: string[], options: TrimCommandOptions): Promise<number> {
  if (options.path) {
    process.stdout.write(`${recorder()}\n`)
    return 0
  }
  const interpreter = interpreterFor(program, 'trim', options.python)
  // If a file is in the way, say so before the program runs.
  if (options.output !== undefined) writeNew(options.output, '', options.force)
  // With JSON on stdout, nothing else goes there.
  const toStdout = options.json === true && options.output === undefined
  const { ended, processes } = await runTrimmed(interpreter, { program, stdout: toStdout ? 'stderr' : 'inherit', words: options })
  const result = `${JSON.stringify({ version: interpreter.version, path: interpreter.path, ended, processes })}\n`
  if (options.output !== undefined) writeNew(options.output, result, true)
  else if (toStdout) process.stdout.write(result)
  if (typeof ended === 'string') say(`the program was ended by ${ended}`)
  say(`CPython ${interpreter.version}: ${summary(processes)}`)
  for (const { pid, off } of processes) if (off !== null) say(`process ${pid}: nothing was given back: ${off}`)
  return exitCode(ended)
}

/** What all processes gave back, in one line. */
function summary(processes: readonly TrimmedProcess[]): string {
  if (processes.length === 0) return 'nothing was given back: no process reported a trim or its end'
  const sum = (count: (process: TrimmedProcess) => number) => processes.reduce((all, process) => all + count(process), 0)
  const trims = sum((process) => process.trims)
  if (trims === 0) return 'nothing was given back'
  const gave = `${bytes(sum((process) => process.poolBytes))} of empty pools and ${bytes(sum((process) => process.mallocBytes))} of malloc's`
  const many = processes.length > 1 ? ` of ${processes.length} processes` : ''
  const longest = Math.max(...processes.map((process) => process.longestMicros))
  const times = `${millis(sum((process) => process.micros))} with the GIL, at most ${millis(longest)} at once`
  const refused = sum((process) => process.refusedBytes)
  const kept = refused > 0 ? `; the system did not take back ${bytes(refused)}` : ''
  const back = `up to ${bytes(sum((process) => process.returnedBytes))} came back`
  return `gave back ${gave} in ${grouped(trims)} trim${trims === 1 ? '' : 's'}${many} (${times}); ${back}${kept}`
}

function millis(micros: number): string {
  return `${(micros / 1000).toFixed(1)} ms`
}
