/** Builds the binding in WebAssembly, for where there is no native one and for browsers: `dist/obmalloc.wasm`, `dist/emnapi.js` and `dist/browser.mjs`. */

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { build } from 'esbuild'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const dist = join(root, 'dist')
const TARGET = 'wasm32-unknown-unknown'
const wasm = join(dist, 'obmalloc.wasm')

function run(program, ...args) {
  const { status, error } = spawnSync(program, args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] })
  if (error || status !== 0) throw new Error(`${program} ${args.join(' ')}: ${error?.message ?? `ended with ${status}`}`)
}

const library = spawnSync('rustc', ['--print', 'target-libdir', '--target', TARGET], { encoding: 'utf8' }).stdout?.trim()
if (!library || !existsSync(library)) {
  const advice = `built without WebAssembly, which takes: rustup target add ${TARGET}`
  if (process.argv.includes('--required')) throw new Error(advice)
  for (const name of ['obmalloc.wasm', 'emnapi.js', 'browser.mjs']) rmSync(join(dist, name), { force: true })
  process.stderr.write(`obmalloc: ${advice}\n`)
  process.exit(0)
}
const optimizer = spawnSync('wasm-opt', ['--version'])
const folder = join(root, 'target', 'wasm')
run(
  'cargo',
  'build',
  '--quiet',
  '--profile',
  'wasm',
  '--target',
  TARGET,
  '--target-dir',
  folder,
  '-p',
  'obmalloc-node',
  '--no-default-features',
)
mkdirSync(dist, { recursive: true })
writeFileSync(wasm, readFileSync(join(folder, TARGET, 'wasm', 'obmalloc_node.wasm')))
if (!optimizer.error)
  run(
    'wasm-opt',
    '-Oz',
    '--enable-bulk-memory',
    '--enable-sign-ext',
    '--enable-nontrapping-float-to-int',
    '--enable-mutable-globals',
    '--enable-multivalue',
    '--enable-reference-types',
    '-o',
    wasm,
    wasm,
  )

// Both files have emnapi in them.
const licence = readFileSync(join(root, 'node_modules', '@emnapi', 'core', 'LICENSE'), 'utf8').trim()
const banner = { js: `/*\nContains emnapi, Node-API in JavaScript:\n\n${licence}\n*/` }
// Lines stay short: Node.js prints the one in which an error came up.
const options = {
  banner,
  bundle: true,
  minify: true,
  lineLimit: 160,
  legalComments: 'inline',
  logLevel: 'warning',
  target: 'es2022',
  absWorkingDir: root,
}
await build({
  ...options,
  stdin: {
    contents: "export { createContext } from '@emnapi/runtime'; export { instantiateNapiModuleSync } from '@emnapi/core'",
    resolveDir: root,
  },
  platform: 'node',
  format: 'cjs',
  outfile: join(dist, 'emnapi.js'),
})
const shims = join(root, 'src', 'browser')
await build({
  ...options,
  entryPoints: [join(shims, 'index.ts')],
  platform: 'browser',
  format: 'esm',
  alias: {
    'node:buffer': join(shims, 'node.ts'),
    'node:process': join(shims, 'node.ts'),
    'node:util': join(shims, 'node.ts'),
    'node:util/types': join(shims, 'node.ts'),
  },
  plugins: [
    {
      name: 'the binding of browsers',
      setup: (at) => at.onResolve({ filter: /\/loading\.js$/ }, () => ({ path: join(shims, 'loading.ts') })),
    },
  ],
  outfile: join(dist, 'browser.mjs'),
})
