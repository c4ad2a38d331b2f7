/** Builds the binding for this platform, or for the one of a Rust target (`--target`), into the folder of the platform's package. */

import { spawnSync } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const { platform, TARGETS } = createRequire(import.meta.url)('../dist/platform.js')

// Other options are passed on.
const options = process.argv.slice(2)
const at = options.indexOf('--target')
const target = at < 0 ? undefined : options.splice(at, 2)[1]
const name = target === undefined ? platform : TARGETS[target]
if (name === undefined) throw new Error(`expected one of ${Object.keys(TARGETS).join(', ')}, got ${target}`)
const folder = join(root, 'npm', name)
mkdirSync(folder, { recursive: true })
const args = [
  'build',
  '--platform',
  '--release',
  '--no-js',
  '--manifest-path',
  'crates/obmalloc-node/Cargo.toml',
  '--output-dir',
  folder,
]
if (target !== undefined) args.push('--target', target)
args.push(...options)
const { status, error } = spawnSync('napi', args, { cwd: root, stdio: 'inherit', shell: process.platform === 'win32' })
if (error) throw error
process.exitCode = status ?? 1
