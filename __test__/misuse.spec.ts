/** The misuse catalogue, each row in the main thread and in a worker. */

import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { isMainThread, Worker } from 'node:worker_threads'

import test from 'ava'

import { play, type Played } from './misuse/play.ts'
import { rows } from './misuse/rows.ts'

const played = rows.filter((row) => row.play)

test('every row of sections A to G is there once, played here or elsewhere', (t) => {
  t.deepEqual(
    rows.map((row) => row.number),
    Array.from({ length: 133 }, (_, index) => index + 1),
  )
  for (const { number, play, elsewhere } of rows) {
    t.is([play, elsewhere].filter((way) => way !== undefined).length, 1, `row ${number}`)
    if (!elsewhere) continue
    const [file, title] = elsewhere
    t.true(readFileSync(new URL(file, import.meta.url), 'utf8').includes(title), `row ${number}: ${file} has no test "${title}"`)
  }
})

test('the main thread is the main thread', (t) => t.true(isMainThread))

for (const { number, what } of played) {
  test(`row ${number}, ${what}: main thread`, (t) => t.is(play(number).failure, undefined))
}

const inWorker = (async (): Promise<Played[]> => {
  const worker = new Worker(new URL('./misuse/worker.mjs', import.meta.url))
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
