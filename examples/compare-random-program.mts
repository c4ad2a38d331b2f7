/**
 * Compares a random program with real CPythons: `node --import tsx examples/compare-random-program.mts [SEED [PYTHON…]]`.
 *
 * The program runs in each CPython, is recorded there, and is replayed here: every address, arena and statistic must be equal.
 */

import { compare, findInterpreters } from 'obmalloc'

const [seed = '1', ...paths] = process.argv.slice(2)

/** Python that keeps, drops, grows and shrinks objects of all sizes, as `seed` says. */
const program = `
import random
random = random.Random(${Number(seed)})
kept = [None] * 500
for step in range(20_000):
    slot = random.randrange(len(kept))
    size = random.choice((1, 8, 30, 100, 400, 600, 5000))
    kept[slot] = random.choice((
        lambda: bytearray(random.randrange(size)),
        lambda: [None] * random.randrange(size),
        lambda: {str(n): n for n in range(random.randrange(size) % 40)},
        lambda: "x" * random.randrange(size) + str(step),
        lambda: None,
    ))()
`

const { usable, unusable } = await findInterpreters(paths)
for (const { path, reason } of unusable) console.error(`${path}: ${reason}`)
if (usable.length === 0) {
  console.error('expected a CPython of 3.8 to 3.15, but none was found')
  process.exitCode = 2
}
for (const { interpreter, exact, report } of await compare(['-c', program], { python: usable.map(({ path }) => path) })) {
  console.log(interpreter.version, exact ? 'exact' : 'different', `${report.matched} of ${report.addresses} addresses`)
  if (!exact) {
    console.error(report.mismatch?.text ?? report.remarks.join('\n'))
    process.exitCode = 1
  }
}
