/** Runs random programs for the collector in a real CPython and here, and compares the logs line by line. */

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import { drive } from './driving.js'
import type { Interpreter } from './interpreters.js'
import { native } from './native.js'
import { golden } from './tools.js'

/** The result of running programs on both sides. */
export interface Proof {
  /** Programs whose logs were equal. */
  readonly programs: number
  /** Lines in these logs. */
  readonly events: number
  /** The first program with different logs, shrunk, with both logs; or another difference. */
  readonly divergence: string | null
}

/** Programs that one process runs. */
const SLICE = 20_000

/** Runs the programs of `count` seeds, beginning with `seed`, in a CPython and here. Sizes of objects and thresholds are compared too. */
export async function prove(
  interpreter: Interpreter,
  seed: number,
  count: number,
  onProgress?: (done: number) => void,
): Promise<Proof> {
  let [programs, events] = [0, 0]
  while (programs < count) {
    onProgress?.(programs)
    const args = [interpreter.version, seed + programs, Math.min(SLICE, count - programs)]
    const proof = await drive<Proof>(interpreter, 'gc', args)
    if (proof.divergence !== null) return { programs, events, divergence: proof.divergence }
    programs += proof.programs
    events += proof.events
  }
  return { programs, events, divergence: null }
}

/** The files with answers that CPythons left. */
export function goldenAnswers(): string[] {
  const folder = join(golden(), 'gc')
  const byVersion = (a: string, b: string) => a.localeCompare(b, 'en', { numeric: true })
  return readdirSync(folder)
    .sort(byVersion)
    .map((file) => join(folder, file))
}

/** Runs here what a CPython has run, and compares with the answers that it left. */
export function proveGolden(path: string): { version: string; proof: Proof } {
  const answers = readFileSync(path, 'utf8')
  const { version } = JSON.parse(answers) as { version: string }
  return { version, proof: JSON.parse(native.checkGolden(answers)) as Proof }
}
