/** Finds the CPythons of this machine, and which of them can be used. */

import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, realpathSync, statSync } from 'node:fs'
import { homedir } from 'node:os'
import { basename, delimiter, join } from 'node:path'
import process from 'node:process'

import type { Interpreter, Unusable, Found } from '../index.js'
import { releaseOf } from './release.js'
import { UsageError } from './usage.js'

export type { Interpreter, Unusable, Found } from '../index.js'

/** Oldest and newest minor version of Python 3 that there is a profile for. */
const [OLDEST, NEWEST] = [8, 15]

/** The most characters of a line that is passed on. */
const LONGEST = 160

const PROBE = `
import json, sys
try:
    import sysconfig
    flag = sysconfig.get_config_var
except ImportError:
    flag = lambda name: None
print(json.dumps({
    "path": sys.executable,
    "version": "%d.%d.%d" % tuple(sys.version_info[:3]),
    "major": sys.version_info[0],
    "minor": sys.version_info[1],
    "implementation": sys.implementation.name if hasattr(sys, "implementation") else "cpython",
    "freeThreaded": bool(flag("Py_GIL_DISABLED")),
    "debug": hasattr(sys, "gettotalrefcount"),
    "pymalloc": flag("WITH_PYMALLOC") in (None, 1),
}))
`

interface Probed {
  path: string
  version: string
  major: number
  minor: number
  implementation: string
  freeThreaded: boolean
  debug: boolean
  pymalloc: boolean
}

/** Every place that may hold a CPython, most wanted first. */
function candidates(): string[] {
  const listed = (process.env['OBMALLOC_PYTHON'] ?? '').split(delimiter).filter(Boolean)
  const names = ['python3', ...Array.from({ length: NEWEST - OLDEST + 1 }, (_, index) => `python3.${OLDEST + index}`)]
  const onPath = (process.env['PATH'] ?? '')
    .split(delimiter)
    // pyenv's shims only start interpreters that are found below anyway.
    .filter((folder) => folder && !folder.endsWith('/shims'))
    .flatMap((folder) => names.map((name) => join(folder, name)))
  const pyenv = join(process.env['PYENV_ROOT'] ?? join(homedir(), '.pyenv'), 'versions')
  const uv =
    process.env['UV_PYTHON_INSTALL_DIR'] ??
    join(process.env['XDG_DATA_HOME'] ?? join(homedir(), '.local', 'share'), 'uv', 'python')
  const installed = [pyenv, uv].flatMap((folder) => children(folder).map((child) => join(folder, child, 'bin', 'python3')))
  return [...listed, ...[...onPath, ...installed].filter((path) => existsSync(path))]
}

function children(folder: string): string[] {
  try {
    return readdirSync(folder).sort((a, b) => a.localeCompare(b, 'en', { numeric: true }))
  } catch {
    return []
  }
}

/** Starts a candidate and asks what it is. */
function probe(path: string): Interpreter | Unusable {
  if (path === '') return { path: 'an empty path', reason: 'it names no program' }
  const run = spawnSync(path, ['-c', PROBE], { encoding: 'utf8', timeout: 20_000, stdio: ['ignore', 'pipe', 'pipe'] })
  if (run.error) return { path, reason: `it cannot be started: ${run.error.message}` }
  if (run.status !== 0) {
    const said = run.stderr.trim().split('\n').at(-1) ?? ''
    const ended = `it ends with ${run.signal ?? `exit code ${run.status}`}`
    // Another program may print all its arguments, in a line that fills the screen.
    return { path, reason: said && said.length <= LONGEST ? `${ended}: ${said}` : ended }
  }
  let found: Probed
  try {
    found = JSON.parse(run.stdout) as Probed
  } catch {
    return { path, reason: 'it is no Python: its answer cannot be read' }
  }
  const { version, implementation, major, minor } = found
  if (implementation !== 'cpython') return { path, reason: `it is ${implementation}, not CPython` }
  if (major !== 3 || minor < OLDEST || minor > NEWEST)
    return { path, reason: `it is CPython ${version}: expected 3.${OLDEST} to 3.${NEWEST}` }
  if (found.freeThreaded) return { path, reason: `it is a free-threaded CPython ${version}, which has no pymalloc` }
  if (found.debug) return { path, reason: `it is a debug build of CPython ${version}, which puts debug hooks around pymalloc` }
  if (!found.pymalloc) return { path, reason: `it is a CPython ${version} built without pymalloc` }
  return { path: found.path || path, version, release: releaseOf(version), shared: isShared(found.path || path) }
}

/** An executable that needs a libpython has its allocator there. */
function isShared(path: string): boolean {
  const run = spawnSync('ldd', [path], { encoding: 'utf8' })
  return run.status === 0 && run.stdout.includes('libpython')
}

/** The CPythons at `paths`, or those found on this machine if there are none; each once, ordered by version. */
export function findInterpreters(paths: readonly string[]): Found {
  const usable = new Map<string, Interpreter>()
  const unusable = new Map<string, Unusable>()
  const seen = new Set<string>()
  for (const path of paths.length > 0 ? paths : candidates()) {
    const real = realPath(path)
    if (seen.has(real)) continue
    seen.add(real)
    const found = probe(path)
    if ('reason' in found) unusable.set(found.path, found)
    else if (!usable.has(realPath(found.path))) usable.set(realPath(found.path), found)
  }
  const byVersion = (a: Interpreter, b: Interpreter) => a.version.localeCompare(b.version, 'en', { numeric: true })
  return { usable: [...usable.values()].sort(byVersion), unusable: [...unusable.values()] }
}

/** The CPython that is asked for. Throws a {@link UsageError} where there is none. */
export function interpreterOf(python = 'python3'): Interpreter {
  const { usable, unusable } = findInterpreters([python])
  if (usable[0]) return usable[0]
  throw new UsageError(unusable.map(({ path, reason }) => `${path} cannot be used: ${reason}`).join('\n'))
}

/** The same, for a command line. Also throws a {@link UsageError} if there is no program to `verb`. */
export function interpreterFor(program: readonly string[], verb: string, python?: string): Interpreter {
  if (program.length === 0) throw new UsageError(`expected a program to ${verb}: obmalloc ${verb} -- script.py, or -- -m module`)
  expectScript(program)
  return interpreterOf(python)
}

/** Throws a {@link UsageError} for `python3 app.py`: a CPython would look for a script of the name `python3`. */
export function expectScript([script = '']: readonly string[]): void {
  // A folder can be a program, of any name.
  if (/^python[\d.]*$/.test(basename(script)) && !statSync(script, { throwIfNoEntry: false })?.isDirectory())
    throw new UsageError(
      `expected a script, or -m and a module, but got ${script}: --python PATH says which CPython is to run it`,
    )
}

function realPath(path: string): string {
  try {
    return realpathSync(path)
  } catch {
    return path
  }
}
