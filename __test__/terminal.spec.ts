/** What a person sees on a terminal while something takes its time. */

import { setTimeout as after } from 'node:timers/promises'

import test from 'ava'

import { Progress } from '../dist/terminal.js'

/** A stream that keeps what is written to it. */
function screen(isTTY: boolean) {
  const written: string[] = []
  const write = (text: unknown) => written.push(String(text)) > 0
  return { written, stream: { isTTY, write } as Pick<NodeJS.WriteStream, 'isTTY' | 'write'> }
}

test('what takes longer than a second is shown, though nothing new is said', async (t) => {
  const { written, stream } = screen(true)
  const progress = new Progress(stream)
  progress.update('recording')
  await after(1500)
  t.deepEqual(written, ['\r\u001b[Krecording'])
  progress.update('replaying')
  await after(300)
  progress.done()
  await after(300)
  t.deepEqual(written.slice(1), ['\r\u001b[Kreplaying', '\r\u001b[K'])
})

test('what is done within a second is not shown', async (t) => {
  const { written, stream } = screen(true)
  const progress = new Progress(stream)
  progress.update('recording')
  await after(300)
  progress.done()
  await after(1000)
  t.deepEqual(written, [])
})

test('nothing is shown where there is no terminal', async (t) => {
  const { written, stream } = screen(false)
  new Progress(stream).update('recording')
  await after(1500)
  t.deepEqual(written, [])
})
