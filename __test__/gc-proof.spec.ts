/**
 * Real collectors are the judge. Random programs allocate, link, drop, collect, freeze, resurrect and look, in every CPython found and here. The
 * two logs of each are compared line by line.
 *
 * `OBMALLOC_PROOF_GRAPHS` is the number of programs in all, `OBMALLOC_SEED` the first seed.
 */

import { readFileSync, writeFileSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'

import test from 'ava'

import { drive } from '../dist/driving.js'
import { findInterpreters } from '../dist/interpreters.js'
import { goldenAnswers, prove, proveGolden } from '../dist/proving.js'
import { releaseOf } from '../dist/release.js'
import { releases } from './tools.ts'

const GRAPHS = Number(process.env['OBMALLOC_PROOF_GRAPHS'] ?? 100_000)
const FIRST_SEED = Number(process.env['OBMALLOC_SEED'] ?? Date.now())

const { usable } = findInterpreters([])
const each = Math.max(10_000, Math.ceil(GRAPHS / Math.max(usable.length, 1)))

for (const { version, path, ...rest } of usable) {
  test.serial(`${each} random graphs meet the same fate in CPython ${version} (${path})`, async (t) => {
    t.timeout(600_000 + each)
    t.log(`seed ${FIRST_SEED}`)
    const { programs, events, divergence } = await prove({ version, path, ...rest }, FIRST_SEED, each)
    t.is(divergence, null, divergence ?? '')
    t.true(programs >= each, `${programs} programs were compared`)
    t.true(events > each * 50, `${events} events were compared`)
  })
}

for (const interpreter of usable.slice(0, 1)) {
  test.serial('a CPython of another version is told apart', async (t) => {
    // 3.14.3 collects in increments, which shows in any program that looks at generations.
    const { divergence } = await prove({ ...interpreter, version: '3.14.3' }, FIRST_SEED, 100).catch((error: Error) => ({
      divergence: error.message,
    }))
    t.regex(divergence ?? '', /there/)
  })
  test.serial('the log of one program can be had', async (t) => {
    const { program, log } = await drive<{ program: string; log: string }>(interpreter, 'gc_log', [192])
    t.regex(program, /collect\(\d\)/)
    t.regex(log, /^new 0 .*[^]*^left \[\]$/m)
  })
}

for (const path of goldenAnswers()) {
  test.serial(`the golden answers ${basename(path)} are given here`, (t) => {
    const { version, proof } = proveGolden(path)
    t.is(version, basename(path, '.json'))
    t.is(proof.divergence, null, proof.divergence ?? '')
    t.is(proof.programs, 12_800)
  })
}

/**
 * Versions whose collectors differ from the version before, and of which no interpreter could be had. Only CPython's source was read to check
 * that they follow the rules of their release here.
 */
const READ_ONLY = ['3.12.5', '3.14.0', '3.14.1', '3.14.2', '3.14.4']

test.serial(`every release has answers of a real collector; by reading only: ${READ_ONLY.join(', ')}`, (t) => {
  const versions = goldenAnswers().map((path) => basename(path, '.json'))
  const answered = new Set(versions.map((python) => releaseOf(python)))
  t.deepEqual([...answered].toSorted(), releases.toSorted())
  t.deepEqual(
    versions.filter((version) => READ_ONLY.includes(version)),
    [],
    'there are answers now',
  )
})

test.serial('other golden answers are not given here', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'obmalloc-answers-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const answers = JSON.parse(readFileSync(goldenAnswers()[0]!, 'utf8')) as { digests: string[] }
  const path = join(folder, 'spoiled.json')
  writeFileSync(path, JSON.stringify({ ...answers, digests: answers.digests.slice(0, 2).reverse() }))
  t.regex(proveGolden(path).proof.divergence ?? '', /one of the 64 programs from seed 0 on/)
  writeFileSync(path, '{}')
  t.throws(() => proveGolden(path), { message: /golden answers: missing field/ })
})
