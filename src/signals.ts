/** Signals that are sent to us while a program runs for us: the program gets them, and ends or goes on as it would by itself. */

import type { ChildProcess } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { constants } from 'node:os'
import { setTimeout } from 'node:timers/promises'

/** What a user, or the process that started us, ends a program with. */
export const ENDING: readonly NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGHUP']

/** What is passed on: every signal that can be caught and that tells a program something. */
const PASSED_ON: readonly NodeJS.Signals[] = [
  ...ENDING,
  'SIGQUIT',
  'SIGUSR1',
  'SIGUSR2',
  'SIGALRM',
  'SIGVTALRM',
  'SIGIO',
  'SIGPWR',
  'SIGTSTP',
  'SIGCONT',
]

/** What a terminal sends to all processes in its foreground at once. */
const FROM_TERMINAL: readonly NodeJS.Signals[] = ['SIGINT', 'SIGQUIT', 'SIGTSTP']

/** How long a program may take to stop when it is told to, in looks of 10 milliseconds. */
const LOOKS = 100

/** Passes signals on to `child` while `work` goes on. */
export async function passingOn<Result>(child: ChildProcess, work: Promise<Result>): Promise<Result> {
  const listener = (signal: NodeJS.Signals): void => {
    if (FROM_TERMINAL.includes(signal) && isFromTerminal(child)) return void stopWith(signal, child)
    child.kill(signal)
    void stopWith(signal, child)
  }
  for (const signal of PASSED_ON) process.on(signal, listener)
  try {
    return await work
  } finally {
    for (const signal of PASSED_ON) process.off(signal, listener)
  }
}

/** The exit code that a shell gives for a program's end. */
export function exitCode(ended: number | NodeJS.Signals): number {
  return typeof ended === 'number' ? ended : 128 + constants.signals[ended]
}

/** Whether the child has what a terminal sends already: then it is in our group, and that is the terminal's foreground. */
function isFromTerminal({ pid }: ChildProcess): boolean {
  const [own, its] = [statusOf('self'), statusOf(pid)]
  return own !== null && own.group === own.foreground && own.group === its?.group
}

/** After SIGTSTP: stops us when the child has stopped, so that who started us sees it. A child can refuse. */
async function stopWith(signal: NodeJS.Signals, { pid }: ChildProcess): Promise<void> {
  if (signal !== 'SIGTSTP') return
  for (let look = 0; look < LOOKS; look++) {
    const status = statusOf(pid)
    if (status === null) return
    if (status.state === 'T') return void process.kill(process.pid, 'SIGSTOP')
    await setTimeout(10)
  }
}

/** What the system says of a process; `null` when it is not there. */
function statusOf(pid: number | 'self' | undefined): { state: string; group: number; foreground: number } | null {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // The name before these can hold anything.
    const [state, , group, , , foreground] = text.slice(text.lastIndexOf(')') + 2).split(' ')
    return { state: state!, group: Number(group), foreground: Number(foreground) }
  } catch {
    return null
  }
}
