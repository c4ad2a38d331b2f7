/** `obmalloc record`: runs a program in a CPython and writes down every allocator call. */

import { findInterpreters } from '../interpreters.js'
import { record } from '../recording.js'
import { say } from '../terminal.js'
import { UsageError } from '../usage.js'

export interface RecordCommandOptions {
  readonly python?: string
  readonly output: string
  readonly json?: boolean
}

export async function recordCommand(program: string[], options: RecordCommandOptions): Promise<number> {
  if (program.length === 0) throw new UsageError('expected a program to record: obmalloc record -- script.py, or -- -m module')
  const { usable, unusable } = findInterpreters([options.python ?? 'python3'])
  const [interpreter] = usable
  if (!interpreter) throw new UsageError(unusable.map(({ path, reason }) => `${path} cannot be used: ${reason}`).join('\n'))
  const recording = await record(interpreter, { program, trace: options.output, stdout: 'inherit' })
  say(`recorded CPython ${interpreter.version} into ${recording.trace}`)
  for (const child of recording.children) say(`  and a process that it started into ${child}`)
  if (options.json) process.stdout.write(`${JSON.stringify({ ...recording, version: interpreter.version })}\n`)
  return typeof recording.ended === 'number' ? recording.ended : 1
}
