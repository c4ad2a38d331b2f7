/** What a trace says of itself, and files that are no traces. */

import { mkdtempSync, readFileSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import test from 'ava'

import { native } from '../src/native.js'
import { replay } from '../src/replaying.js'
import type { Release } from '../index.js'
import { survey, TraceError } from '../src/trace.js'
import { golden } from '../src/tools.js'

const folder = mkdtempSync(join(tmpdir(), 'obmalloc-trace-'))
test.after.always(() => rmSync(folder, { recursive: true }))

const traces = readdirSync(golden()).filter((file) => file.endsWith('.trace'))

test('a survey finds what a replay finds', async (t) => {
  t.true(traces.length > 5)
  for (const file of traces) {
    const path = join(golden(), file)
    const { events, hooksLost, remarks } = survey(path)
    const report = await replay({ release: file.replace('.trace', '') as Release, segments: [{ path }] })
    t.deepEqual([events, hooksLost, remarks], [report.events, report.hooksLost, report.remarks], file)
  }
})

test('progress is bytes read and bytes in all', (t) => {
  const path = join(golden(), '3.13.trace')
  const { length } = readFileSync(path)
  const number = native.openReplay(JSON.stringify({ release: '3.13', segments: [{ path, bytes: length - 1 }, { path }] }))
  const [before] = native.progressReplay(number)
  t.is(native.stepReplay(number, 1000), 1)
  const [after, all] = native.progressReplay(number)
  t.true(before > 0 && before < after && after < length, `${before}, ${after}`)
  t.is(all, 2 * length - 1)
  native.closeReplay(number)
  t.throws(() => native.progressReplay(number), { code: 'ERR_OUT_OF_RANGE' })
})

/** Bytes that the process has read so far, as Linux counts them. */
const bytesRead = (): number => Number(/^rchar: (\d+)$/m.exec(readFileSync('/proc/self/io', 'utf8'))![1])

test('a good header with gigabytes of zeros behind it is refused at once', async (t) => {
  const source = readFileSync(join(golden(), '3.13.trace'))
  const head = source.subarray(0, 16 + source.readUInt32LE(12))
  for (const version of [1, 2, 3]) {
    const path = join(folder, `zeros-${version}.trace`)
    head.writeUInt32LE(version, 8)
    writeFileSync(path, head)
    truncateSync(path, 5 * 2 ** 30)
    const before = bytesRead()
    t.is(survey(path).events, 0)
    const error = await t.throwsAsync(replay({ release: '3.13', segments: [{ path }] }), { instanceOf: TraceError })
    t.is(error?.message, `${path}: the block at byte ${head.length} is damaged: its checksum does not match`)
    const read = bytesRead() - before
    t.true(read < 2 ** 30, `${read} bytes were read`)
  }
})
