/** Programs that run JavaScript with Node-API: Node.js, and Bun and Deno if they are found. */

import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import test from 'ava'

import { addon } from './tools.ts'

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
  const both = found && existsSync(new URL('dist/obmalloc.wasm', cwd)) ? test : test.skip
  both(`${name} places, collects and refuses in WebAssembly as Node.js does with the addon`, (t) => {
    for (const task of ['requests', 'objects', 'mistakes']) {
      const said = (binding: string, program: string, ...before: string[]) => {
        const env = { ...process.env, OBMALLOC_BINDING: binding }
        const result = spawnSync(program, [...before, '__test__/wasm/same.cjs', task, '3.14'], { cwd, env, encoding: 'utf8' })
        t.is(result.status, 0, result.stderr.slice(0, 1000))
        return result.stdout
      }
      t.is(said('wasm', executable, ...args), said('native', process.execPath), task)
    }
  })
}

const hasCompiler = spawnSync('cc', ['--version']).status === 0
const withCompiler = hasCompiler ? test : test.skip
withCompiler('an engine without outside buffers refuses views, and gives all the rest', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'obmalloc-refusing-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const refusing = join(folder, 'librefusing.so')
  const source = new URL('runtimes/refusing.c', import.meta.url).pathname
  t.is(spawnSync('cc', ['-shared', '-fPIC', '-o', refusing, source], { stdio: 'inherit' }).status, 0)
  // The linker takes Node.js's own function before that of a preloaded library. So a copy of the addon asks for a function of another name.
  const binding = readFileSync(addon)
  const name = 'napi_create_external_arraybuffer\0'
  t.true(binding.includes(name))
  for (let at = binding.indexOf(name); at >= 0; at = binding.indexOf(name, at + 1))
    binding.write(name.replace('external', 'refusing'), at)
  const copy = join(folder, 'refused.node')
  writeFileSync(copy, binding)
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--expose-gc', '__test__/runtimes/refused.cjs', copy], {
    cwd,
    env: { ...process.env, LD_PRELOAD: refusing },
    encoding: 'utf8',
  })
  t.is(stdout, 'nothing is left behind\nend\n', stderr)
  t.is(status, 0)
})
