/** Temporary folders and files of this process. A command leaves none behind, unless the system kills it. */

import { randomBytes } from 'node:crypto'
import { chmodSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'

import { ENDING } from './signals.js'

const present = new Set<string>()

/** Whether this process is the command line. In any other one, signals are not ours. */
let isCommand = false

/** Makes a folder. */
export function makeFolder(prefix: string): string {
  return made(prefix, (path) => mkdirSync(path, { mode: 0o700 }))
}

/** Makes an empty file. */
export function makeFile(prefix: string, mode: number): string {
  return made(prefix, (path) => {
    writeFileSync(path, '', { flag: 'wx' })
    chmodSync(path, mode)
  })
}

function made(prefix: string, make: (path: string) => void): string {
  const path = join(tmpdir(), `${prefix}${randomBytes(8).toString('hex')}`)
  // Before it is made: a signal may come at once.
  present.add(path)
  listen()
  try {
    make(path)
    return path
  } catch (error) {
    remove(path)
    throw error
  }
}

/** Takes one away. */
export function remove(path: string): void {
  rmSync(path, { recursive: true, force: true })
  present.delete(path)
  listen()
}

/** Takes all away. */
export function removeAll(): void {
  present.forEach(remove)
}

/** From now on a signal that ends this process takes all away first. */
export function removeAtSignals(): void {
  isCommand = true
}

/** Signals are listened to only as long as there is something to take away: without a listener they end this process at once. */
function listen(): void {
  for (const signal of ENDING) {
    process.off(signal, end)
    if (isCommand && present.size > 0) process.on(signal, end)
  }
}

function end(signal: NodeJS.Signals): void {
  // The program that we run, or `compare`, has got the signal too. Wait: it ends first.
  if (process.listenerCount(signal) > 1) return
  removeAll()
  process.kill(process.pid, signal)
}
