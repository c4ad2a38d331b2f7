/** Builds the recorder, what the checker needs besides, and the driver, which are loaded into CPythons, and puts them beside the binding. */

import { spawnSync } from 'node:child_process'
import { copyFileSync, mkdirSync, renameSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const { platform } = createRequire(import.meta.url)('../dist/platform.js')
const folder = join(root, 'npm', platform)

if (!/^linux-.*-gnu$/.test(platform)) {
  process.stderr.write('obmalloc: the recorder and the driver are for Linux with glibc; compare will use the golden traces\n')
} else {
  const metadata = spawnSync('cargo', ['metadata', '--no-deps', '--format-version', '1'], {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 1 << 26,
  })
  const target = JSON.parse(metadata.stdout).target_directory
  const crates = ['obmalloc-preload', 'obmalloc-libc', 'obmalloc-python', 'obmalloc-measure', 'obmalloc-run']
  const build = spawnSync('cargo', ['build', '--release', '--quiet', ...crates.flatMap((crate) => ['-p', crate])], {
    cwd: root,
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  if (build.status !== 0) process.exit(build.status ?? 1)
  mkdirSync(folder, { recursive: true })
  // A program that has the old file loaded keeps it: the new one takes its name, not its bytes.
  const put = (from, to) => {
    copyFileSync(join(target, 'release', from), join(folder, `${to}.new`))
    renameSync(join(folder, `${to}.new`), join(folder, to))
  }
  for (const file of ['libobmalloc_preload.so', 'libobmalloc_libc.so', 'obmalloc-measure', 'obmalloc-run']) put(file, file)
  put('libobmalloc_python.so', 'obmalloc_python.abi3.so')
}
