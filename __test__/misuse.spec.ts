/** Sections A, B and C of the misuse catalogue, each row in the main thread and in a worker. */

import { once } from 'node:events'
import { isMainThread, Worker } from 'node:worker_threads'

import test from 'ava'

import { play, type Played } from './misuse/play.ts'
import { rows } from './misuse/rows.ts'

const played = rows.filter((row) => row.play)

test('every row of sections A, B and C is there once, played or with a reason', (t) => {
  t.deepEqual(
    rows.map((row) => row.number),
    Array.from({ length: 64 }, (_, index) => index + 1),
  )
  for (const row of rows) t.true((row.play === undefined) !== (row.later === undefined), `row ${row.number}`)
})

test('the main thread is the main thread', (t) => t.true(isMainThread))

for (const { number, what } of played) {
  test(`row ${number}, ${what}: main thread`, (t) => t.is(play(number).failure, undefined))
}

const inWorker = (async (): Promise<Played[]> => {
  const worker = new Worker(new URL('./misuse/play.ts', import.meta.url))
  const [[results], [code]] = (await Promise.all([once(worker, 'message'), once(worker, 'exit')])) as [[Played[]], [number]]
  if (code !== 0) throw new Error(`the worker ended with ${code}`)
  return results
})()

for (const { number, what } of played) {
  test(`row ${number}, ${what}: worker`, async (t) => {
    const results = await inWorker
    t.deepEqual(
      results.find((result) => result.number === number),
      { number },
    )
  })
}
