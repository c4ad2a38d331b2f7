/** The end of a script's time while a heap calls back, or while an error is being made: nothing of ours takes its place. */

import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

import test from 'ava'

const cwd = new URL('../..', import.meta.url)
const ended = 'ERR_SCRIPT_EXECUTION_TIMEOUT'

async function run(...args: string[]): Promise<string> {
  const options = { cwd, timeout: 20_000, killSignal: 'SIGKILL' as const }
  const { stdout } = await promisify(execFile)(process.execPath, ['__test__/sound/timeout.cjs', ...args], options)
  return stdout
}

const callbacks = ['finalize', 'clear', 'dealloc', 'traverse', 'weakref', 'callbacks', 'allocator', 'arena', 'del']
callbacks.push('unraisable', 'nested')

for (const which of callbacks) {
  test.serial(`a callback that never returns is ended, and no other is called: ${which}`, async (t) => {
    for (const release of ['3.8', '3.13', '3.14.0']) {
      // A slow machine may not get as far as the first.
      t.regex(await run(which, 'loops', release), /^ERR_SCRIPT_EXECUTION_TIMEOUT, [01] calls, sound\n$/, release)
    }
  })
}

for (const which of [...callbacks, 'errors', 'badArguments', 'errorsInside']) {
  test.serial(`a script that catches what it can is ended: ${which}`, async (t) => {
    for (let round = 0; round < 4; round++) t.is(await run(which, 'catches', '3.13'), `${ended}, calls, sound\n`)
  })
}

test.serial('closing that is ended in a callback can be gone on with, and each arena is given back once', async (t) => {
  const options = { cwd, timeout: 20_000, killSignal: 'SIGKILL' as const }
  const { stdout } = await promisify(execFile)(process.execPath, ['__test__/sound/closing.cjs'], options)
  t.is(stdout, `${ended}, 1 of 6 arenas\nclosed, 6 of 6 arenas\n`)
})
