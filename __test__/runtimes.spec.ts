/** What else runs JavaScript with Node-API: Node.js itself, and Bun and Deno where they are found. */

import { spawnSync } from 'node:child_process'

import test from 'ava'

const cwd = new URL('..', import.meta.url)
const expected = `collected 1000 finalized 1000 left 0
MemoryFault ERR_WRONG_DOMAIN
view 7,7 true
detached 0
end
`

for (const [name, executable, ...args] of [
  ['Node.js', process.execPath],
  ['Bun', process.env['OBMALLOC_BUN'] ?? 'bun'],
  ['Deno', process.env['OBMALLOC_DENO'] ?? 'deno', 'run', '--allow-all'],
] as Array<[string, string, ...string[]]>) {
  const found = spawnSync(executable, ['--version']).status === 0
  const run = found ? test : test.skip
  run(`${name} loads the addon, works with it and ends`, (t) => {
    const { status, stdout, stderr } = spawnSync(executable, [...args, '__test__/runtimes/smoke.cjs'], { cwd, timeout: 60_000 })
    t.is(stdout.toString(), expected, stderr.toString())
    t.is(status, 0)
  })
}
