/** Builds the recorder, what the checker needs besides, and the driver, which are loaded into CPythons, and puts them beside the binding. */

import { spawnSync } from 'node:child_process'
import { copyFileSync, mkdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const { platform } = createRequire(import.meta.url)('../dist/platform.js')
const folder = join(root, 'npm', platform)

if (process.platform !== 'linux') {
  process.stderr.write('obmalloc: the recorder and the driver exist for Linux only; compare will use the golden traces\n')
} else {
  const metadata = spawnSync('cargo', ['metadata', '--no-deps', '--format-version', '1'], {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 1 << 26,
  })
  const target = JSON.parse(metadata.stdout).target_directory
  const crates = ['obmalloc-preload', 'obmalloc-libc', 'obmalloc-python', 'obmalloc-measure']
  const build = spawnSync('cargo', ['build', '--release', '--quiet', ...crates.flatMap((crate) => ['-p', crate])], {
    cwd: root,
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  if (build.status !== 0) process.exit(build.status ?? 1)
  mkdirSync(folder, { recursive: true })
  for (const library of ['libobmalloc_preload.so', 'libobmalloc_libc.so'])
    copyFileSync(join(target, 'release', library), join(folder, library))
  copyFileSync(join(target, 'release', 'libobmalloc_python.so'), join(folder, 'obmalloc_python.abi3.so'))
  copyFileSync(join(target, 'release', 'obmalloc-measure'), join(folder, 'obmalloc-measure'))
}
