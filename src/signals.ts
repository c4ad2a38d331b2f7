/** Passes signals that are sent to this command on to the program that it runs. The program ends or goes on as it would by itself. */

import type { ChildProcess } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { constants } from 'node:os'
import process from 'node:process'
import { setTimeout } from 'node:timers/promises'

/** The signals with which a user, or the process that started us, ends a program. */
export const ENDING: readonly NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGHUP']

/** The signals that are passed on: all that can be caught and mean something to a program. */
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

/** The signals that a terminal sends to all processes in its foreground at once. */
const FROM_TERMINAL: readonly NodeJS.Signals[] = ['SIGINT', 'SIGQUIT', 'SIGTSTP']

/** How long a program may take to stop when it is told to, in looks of 10 milliseconds. */
const LOOKS = 100

/** Passes signals on to `child` until `work` is done. Returns the result of the work, and the last signal that asks us to end. */
export async function passingOn<Result>(
  child: ChildProcess,
  work: Promise<Result>,
): Promise<{ result: Result; told: NodeJS.Signals | null }> {
  let told: NodeJS.Signals | null = null
  const listener = (signal: NodeJS.Signals): void => {
    if (ENDING.includes(signal)) told = signal
    if (!FROM_TERMINAL.includes(signal) || !isFromTerminal(child)) child.kill(signal)
    if (signal === 'SIGTSTP') void stopWith(child)
  }
  for (const signal of PASSED_ON) process.on(signal, listener)
  const isStarter = starter()
  const watch = setInterval(() => {
    if (isStarter()) return
    clearInterval(watch)
    listener('SIGTERM')
  }, 200).unref()
  try {
    return { result: await work, told }
  } finally {
    clearInterval(watch)
    for (const signal of PASSED_ON) process.off(signal, listener)
  }
}

/**
 * Whether the npm that started us is still there. `npx` starts us through a shell, which passes no signal on: if a signal ends `npx`, we only
 * see that the shell or npm is gone. Other parents may leave us behind on purpose, such as a shell that starts us with `nohup`.
 */
function starter(): () => boolean {
  const chain = (): [shell: number | undefined, npm: number | undefined] => {
    const shell = statusOf('self')?.parent
    return [shell, statusOf(shell)?.parent]
  }
  const [shell, npm] = chain()
  if (!statusOf(npm)?.name.startsWith('npm')) return () => true
  return () => {
    const [first, second] = chain()
    return first === shell && second === npm
  }
}

/** The exit code that a shell gives for a program's end. */
export function exitCode(ended: number | string): number {
  return typeof ended === 'number' ? ended : 128 + constants.signals[ended as NodeJS.Signals]
}

/** Whether the child has what a terminal sends already: then it is in our group, and that is the terminal's foreground. */
function isFromTerminal({ pid }: ChildProcess): boolean {
  const [own, its] = [statusOf('self'), statusOf(pid)]
  return own !== null && own.group === own.foreground && own.group === its?.group
}

/** After SIGTSTP: stops us when the child has stopped, so that the process that started us sees it. A child can refuse. */
async function stopWith({ pid }: ChildProcess): Promise<void> {
  for (let look = 0; look < LOOKS; look++) {
    const status = statusOf(pid)
    if (status === null) return
    if (status.state === 'T') return void process.kill(process.pid, 'SIGSTOP')
    await setTimeout(10)
  }
}

interface Status {
  readonly name: string
  /** The system's letter: `T` when it is stopped. */
  readonly state: string
  readonly parent: number
  readonly group: number
  /** The group that its terminal's keys go to; -1 without a terminal. */
  readonly foreground: number
}

/** What the system says of a process; `null` when it is not there. */
function statusOf(pid: number | 'self' | undefined): Status | null {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // The name can hold anything, also parentheses.
    const [begin, end] = [text.indexOf('(') + 1, text.lastIndexOf(')')]
    const [state, parent, group, , , foreground] = text.slice(end + 2).split(' ')
    const numbers = { parent: Number(parent), group: Number(group), foreground: Number(foreground) }
    return { name: text.slice(begin, end), state: state!, ...numbers }
  } catch {
    return null
  }
}
