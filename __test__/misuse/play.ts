/** Plays every row; as a worker, posts what came of it. */

import { isMainThread, parentPort } from 'node:worker_threads'

import { rows } from './rows.ts'
import { Scene } from './scene.ts'

export interface Played {
  number: number
  failure?: string
}

export function play(number: number): Played {
  const row = rows.find((row) => row.number === number)
  if (!row?.play) throw new Error(`no row ${number}`)
  const scene = new Scene()
  try {
    row.play(scene)
    scene.finish()
    return { number }
  } catch (error) {
    return { number, failure: error instanceof Error ? (error.stack ?? error.message) : String(error) }
  }
}

if (!isMainThread) {
  const played = rows.filter((row) => row.play).map((row) => play(row.number))
  parentPort?.postMessage(played)
}
