/**
 * Checks that a release is what its tag says: `node scripts/release-check.mjs v1.2.3`. All packages and crates have that version, the changelog has
 * a section of it, there is a package for every platform, and with `--built` each package has its binaries, which need no newer glibc than the
 * README says.
 */

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const read = (...path) => readFileSync(join(root, ...path), 'utf8')
const [tag] = process.argv.slice(2)
const built = process.argv.includes('--built')
const wrong = []
function expect(what, expected, got) {
  if (expected !== got) wrong.push(`${what}: expected ${expected}, got ${got}`)
}

const main = JSON.parse(read('package.json'))
expect('the tag', `v${main.version}`, tag)
expect('Cargo.toml', main.version, /^version = "(.*)"$/m.exec(read('Cargo.toml'))?.[1])
expect('a section of CHANGELOG.md', true, read('CHANGELOG.md').includes(`\n## [${main.version}]`))

/** The oldest glibc that the binaries may need. */
const [, GLIBC] = /GLIBC = '(.*)'/.exec(read('src', 'platform.ts'))
/** The versions of glibc that a binary asks for and that are newer. */
function newerGlibc(path) {
  const [, minor] = GLIBC.split('.')
  const asked = new Set(readFileSync(path, 'latin1').match(/GLIBC_2\.\d+/g))
  return [...asked].filter((name) => Number(name.split('.')[1]) > Number(minor))
}

const platforms = readdirSync(join(root, 'npm'))
expect('packages of platforms', main.napi.targets.length, platforms.length)
for (const name of platforms) {
  const one = JSON.parse(read('npm', name, 'package.json'))
  expect(`npm/${name}: name`, `obmalloc-${name}`, one.name)
  expect(`npm/${name}: version`, main.version, one.version)
  expect(`npm/${name}: main`, `obmalloc.${name}.node`, one.main)
  for (const file of built ? [...one.files] : []) {
    const path = join(root, 'npm', name, file)
    if (!existsSync(path)) wrong.push(`npm/${name}: expected ${file}, which is not there`)
    else
      for (const needed of newerGlibc(path))
        wrong.push(`npm/${name}: expected glibc ${GLIBC} to be enough for ${file}, got ${needed}`)
  }
}
for (const file of built ? ['index.js', 'obmalloc.wasm', 'emnapi.js', 'browser.mjs', 'viewer.html'] : []) {
  if (!existsSync(join(root, 'dist', file))) wrong.push(`expected dist/${file}, which is not there`)
}

if (wrong.length > 0) {
  process.stderr.write(`${wrong.join('\n')}\n`)
  process.exitCode = 1
} else process.stderr.write(`${main.version} is whole: ${platforms.join(', ')}\n`)
