/** Programs with a CPython in them, recorded and checked. */

import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'

import { findInterpreters, type Interpreter } from '../dist/interpreters.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'obmalloc-embedding-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

const ASK =
  'import sys, sysconfig as s; print(s.get_config_var("LIBDIR"), s.get_config_var("LDVERSION"), sys.base_prefix, sep="\\n")'

/** Builds the program for a CPython; `null` where there is no library of it. */
function build({ path, version }: Interpreter, options: string[] = []): string[] | null {
  const [libraries, name, home] = spawnSync(path, ['-c', ASK], { encoding: 'utf8' }).stdout.split('\n')
  const program = join(folder, `again-${version}${options.join('')}`)
  const source = join(root, '__test__', 'embedding', 'again.c')
  const args = [
    '-O1',
    '-rdynamic',
    ...options,
    '-o',
    program,
    source,
    `-L${libraries}`,
    `-Wl,-rpath,${libraries}`,
    `-lpython${name}`,
  ]
  if (spawnSync('cc', args, { stdio: 'ignore' }).status !== 0) return null
  // The command line runs only CPythons. So a CPython is run, which executes the program in its place.
  return ['-c', `import os; os.environ['PYTHONHOME'] = '${home}'; os.execv('${program}', ['again', '8'])`]
}

/** Runs the command line, and reads the JSON that it prints. */
function obmalloc(command: string, args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(root, 'dist', 'cli.js'), command, '--json', ...args], {
    encoding: 'utf8',
    cwd: folder,
  })
  return { status, stderr, result: JSON.parse(stdout) }
}

const built = findInterpreters([]).usable.flatMap((interpreter) => {
  const program = build(interpreter)
  return program ? [{ interpreter, program, minor: Number(interpreter.version.split('.')[1]) }] : []
})
const withPrograms = built.length > 0 ? test : test.skip

withPrograms('interpreters that come one after the other are recorded, or what is lacking is said', (t) => {
  for (const { interpreter, program, minor } of built) {
    const { status, result } = obmalloc('record', ['--python', interpreter.path, '-o', 'again.trace', '--', ...program])
    const [again] = result.children
    const lost =
      /^process \d+: CPython, initialised again, replaced the recorder's allocators: raw, mem and obj calls are not recorded$/
    if (minor === 12) {
      t.is(status, 4)
      t.is(result.remarks.length, 1)
      t.regex(result.remarks[0], lost)
      t.is(obmalloc('replay', [again]).status, 4)
    } else {
      t.is(status, 0, interpreter.version)
      t.deepEqual(result.remarks, [])
      const replayed = obmalloc('replay', [again])
      t.is(replayed.status, 0, `${interpreter.version}: ${replayed.stderr}`)
      // Each of the eight asks for many thousand blocks.
      t.true(result.events > 8 * 20_000, `${interpreter.version}: ${result.events}`)
    }
  }
})

withPrograms('interpreters that come one after the other are checked, and nothing is invented', (t) => {
  for (const { interpreter, program } of built) {
    const { status, result, stderr } = obmalloc('check', ['--python', interpreter.path, '--', ...program])
    t.is(status, 0, `${interpreter.version}: ${stderr}`)
    t.deepEqual(result.findings, [])
  }
})

withPrograms("a program with a malloc of its own is checked without C's calls, which is said", (t) => {
  const { interpreter } = built.at(-1)!
  const { status, result } = obmalloc('check', ['--python', interpreter.path, '--', ...build(interpreter, ['-DOWN_MALLOC'])!])
  t.is(status, 4)
  t.deepEqual(result.findings, [])
  const [{ lost, replacedBy }] = result.processes
  t.deepEqual(lost, ['c'])
  t.regex(replacedBy, /^a malloc of its own \(.*again-[^)]*\)$/)
})
