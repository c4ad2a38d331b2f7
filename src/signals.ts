/** Signals: their names, and how those that are sent to this command reach the program that it runs, which ends or goes on as by itself. */

import { readFileSync } from 'node:fs'
import { constants } from 'node:os'
import process from 'node:process'
import { setTimeout } from 'node:timers/promises'

import type { Started } from './started.js'

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

/** How long a program may take to stop when it is told to, in looks of 10 milliseconds. */
const LOOKS = 100

/** Takes signals. */
interface Taker {
  readonly signals: readonly NodeJS.Signals[]
  readonly listener: (signal: NodeJS.Signals) => void
}

/** Who takes signals at present. */
const takers = new Set<Taker>()

/** Node.js's only listener for each signal, however many programs run at once: it warns of more than ten. */
function tell(signal: NodeJS.Signals): void {
  for (const { signals, listener } of takers) if (signals.includes(signal)) listener(signal)
}

/** Has a listener take signals, which then do not end this process. Returns what ends that. */
export function take(signals: readonly NodeJS.Signals[], listener: (signal: NodeJS.Signals) => void): () => void {
  const isTold = (signal: NodeJS.Signals): boolean => [...takers].some((taker) => taker.signals.includes(signal))
  for (const signal of signals) if (!isTold(signal)) process.on(signal, tell)
  const taker = { signals, listener }
  takers.add(taker)
  return () => {
    takers.delete(taker)
    for (const signal of signals) if (!isTold(signal)) process.off(signal, tell)
  }
}

/** Whether a program that we run has the signals, or its helpers are waited for. */
export const isTaken = (): boolean => takers.size > 0

/** Passes signals on to the program until `work` is done. Returns the result of the work, and the last signal that asks us to end. */
export async function passingOn<Result>(
  program: Started,
  work: Promise<Result>,
): Promise<{ result: Result; told: NodeJS.Signals | null }> {
  let told: NodeJS.Signals | null = null
  const listener = (signal: NodeJS.Signals): void => {
    if (ENDING.includes(signal)) told = signal
    program.pass(signal)
    if (signal === 'SIGTSTP') void stopWith(program)
  }
  const leave = take(PASSED_ON, listener)
  const isStarter = starter()
  const watch = setInterval(() => {
    if (isStarter()) return
    clearInterval(watch)
    told = 'SIGTERM'
    program.send('SIGTERM')
  }, 200).unref()
  try {
    return { result: await work, told }
  } finally {
    clearInterval(watch)
    leave()
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

/** The first signal that has no name of its own. */
const SIGRTMIN = 34

/** The name of the signal with this number. */
export function signalNamed(number: number): string {
  const named = Object.entries(constants.signals).find(([, value]) => value === number)
  if (named) return named[0]
  return number < SIGRTMIN ? `signal ${number}` : `SIGRTMIN+${number - SIGRTMIN}`
}

/** The exit code that a shell gives for a program's end. */
export function exitCode(ended: number | string): number {
  if (typeof ended === 'number') return ended
  const [, base, more] = /^(signal |SIGRTMIN\+)(\d+)$/.exec(ended) ?? []
  if (base === undefined) return 128 + constants.signals[ended as NodeJS.Signals]
  return 128 + Number(more) + (base === 'signal ' ? 0 : SIGRTMIN)
}

/** After SIGTSTP: stops us when the child has stopped, so that the process that started us sees it. A child can refuse. */
async function stopWith({ pid }: Started): Promise<void> {
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
}

/** What the system says of a process; `null` when it is not there. */
function statusOf(pid: number | 'self' | undefined): Status | null {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // The name can hold anything, also parentheses.
    const [begin, end] = [text.indexOf('(') + 1, text.lastIndexOf(')')]
    const [state, parent] = text.slice(end + 2).split(' ')
    return { name: text.slice(begin, end), state: state!, parent: Number(parent) }
  } catch {
    return null
  }
}
