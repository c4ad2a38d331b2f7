/** The whole test suite: Rust, then TypeScript. The last line on stdout is `N passed, N failed`. */

import { spawn } from 'node:child_process'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const total = { passed: 0, failed: 0 }

const { findInterpreters } = createRequire(import.meta.url)('../dist/interpreters.js')
if (findInterpreters([]).usable.length === 0)
  process.stderr.write(
    'no CPython was found that can be used: what is compared are the golden traces, which real CPythons left\n',
  )

/** Runs a command, showing what it prints; gives its output and exit code. */
function run(command, args, env = {}) {
  return new Promise((done, failed) => {
    const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, ...env } })
    let output = ''
    child.stdout.setEncoding('utf8').on('data', (text) => {
      output += text
      process.stdout.write(text)
    })
    child.on('error', failed)
    child.on('close', (code) => done({ output, code: code ?? 1 }))
  })
}

/** Adds up the numbers that a pattern finds; a suite that failed without counting a failure, or ran nothing, counts as one failure. */
function count(name, { output, code }, passed, failed) {
  const sum = (pattern) => [...output.matchAll(pattern)].reduce((all, match) => all + Number(match[1]), 0)
  const found = { passed: sum(passed), failed: sum(failed) }
  if ((code !== 0 && found.failed === 0) || found.passed === 0) {
    process.stderr.write(`${name}: ended with exit code ${code} after ${found.passed} tests\n`)
    found.failed += 1
  }
  total.passed += found.passed
  total.failed += found.failed
}

count(
  'cargo test',
  await run('cargo', ['test', '--workspace', '--no-fail-fast']),
  /^test result: .*? (\d+) passed/gm,
  /^test result: .*? (\d+) failed/gm,
)
count('ava', await run('npx', ['--no-install', 'ava', '--tap']), /^# pass (\d+)/gm, /^# fail (\d+)/gm)

process.stdout.write(`${total.passed} passed, ${total.failed} failed\n`)
process.exitCode = total.failed === 0 ? 0 : 1
