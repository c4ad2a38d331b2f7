/** What if: makes a recording's calls again with other settings and other allocators. */

import { execFile } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'

import type {
  AbortSignalLike,
  Configuration,
  WhatIfRow,
  WhatIf,
  WhatIfOptions,
  MeasuredAllocator as AllocatorName,
} from '../index.js'
import { findMoment } from './moments.js'
import { native } from './native.js'
import { recordedRelease } from './release.js'
import { reading } from './replaying.js'
import { makeFolder, remove } from './temporary.js'
import { measurer } from './tools.js'
import { readHeader, segments } from './trace.js'
import { UsageError } from './usage.js'

export type { Configuration, WhatIfRow, WhatIf, WhatIfOptions, MeasuredAllocator as AllocatorName } from '../index.js'

/** Allocators that can replace C's, by the names of their files. `glibc` is C's own. */
export const ALLOCATORS = {
  glibc: null,
  jemalloc: /^libjemalloc\.so\.\d/,
  mimalloc: /^libmimalloc\.so\.\d/,
  tcmalloc: /^libtcmalloc_minimal\.so\.\d/,
} as const

interface Made {
  readonly peakHeld: number
  readonly held: number
  readonly lost: number
  readonly maps: number
  readonly unmaps: number
  readonly nanoseconds: number
}

/** The results of trials, as the engine returns them. */
export interface Tried {
  /** What the recorded process had at the moment, and bytes that a trim would give back there. */
  readonly recorded: Omit<Made, 'lost' | 'nanoseconds'> & { readonly trimmable: number }
  readonly calls: number
  /** How many calls were of blocks that are set apart. */
  readonly apart: number
  /** Of the configurations; the first is {@link AS_RECORDED}. */
  readonly rows: readonly Made[]
}

/** The first configuration of every list. */
export const AS_RECORDED: Configuration = {}

/** Events looked at, or calls made, between two looks at the clock and the terminal. */
const SLICE = 500_000

/** Tries settings on a recording. Throws `TraceError` when it cannot be read. */
export async function whatIf(path: string, options: WhatIfOptions = {}): Promise<WhatIf> {
  const { at = 'end', signal, onProgress } = options
  signal?.throwIfAborted()
  const moment = await findMoment(segments(path), at, (done, total) => onProgress?.(path, done, total), signal)
  return whatIfAt(path, { ...moment, moment: at }, options)
}

/** As {@link whatIf}, at a moment that has been found already: finding one reads the whole recording. */
export async function whatIfAt(path: string, at: WhatIf['at'], options: Omit<WhatIfOptions, 'at'>): Promise<WhatIf> {
  const { configurations = [], allocators = [], apart, signal, onProgress } = options
  allocators.forEach(allocatorNamed)
  const [header, parts] = [readHeader(path), segments(path)]
  const release = recordedRelease(path, header)
  const frames = header.stacks ?? 0
  if (!apart && configurations.some((configuration) => configuration.apart))
    throw new UsageError('expected a file and line whose blocks are to be set apart, but there is none')
  if (apart && frames === 0) throw new UsageError(`${path} has no stacks: blocks cannot be set apart by line`)
  const all = [AS_RECORDED, ...configurations, ...(apart ? [{ apart: true }] : [])]
  return withCalls(async (calls) => {
    const site = apart ? [apart.file, apart.line] : null
    const wanted = { release, segments: parts, stopAt: at.event + 1, frames, apart: site, configurations: all, calls }
    const trials = reading(() => native.openTrials(JSON.stringify(wanted)))
    try {
      while (reading(() => native.stepTrials(trials, SLICE)) !== 0) {
        onProgress?.(path, ...native.progressTrials(trials))
        await new Promise((done) => setImmediate(done))
        signal?.throwIfAborted()
      }
      const tried = JSON.parse(reading(() => native.answerTrials(trials))) as Tried & { readonly verified: boolean }
      if (apart && tried.apart === 0)
        throw new UsageError(`expected a line that asked for memory by then, but ${apart.file}:${apart.line} did not`)
      const made = rowsOf(release, tried, all, apart)
      const measured = await measureAll(calls, release, allocators, signal, onProgress)
      const [rows, remarks] = [
        [...made.rows, ...measured.rows],
        [...made.remarks, ...measured.remarks],
      ]
      return { schema: 'obmalloc.what-if/1', at, verified: tried.verified, calls: tried.calls, rows, remarks }
    } finally {
      native.closeTrials(trials)
    }
  })
}

/** Makes a folder for a file of calls. */
export const callsFolder = (): string => makeFolder('obmalloc-what-if-')

/** Calls `work` with the path of a file that is not there yet, in a folder that is gone afterwards. */
export async function withCalls<Result>(work: (file: string) => Promise<Result>, folder = callsFolder()): Promise<Result> {
  try {
    return await work(join(folder, 'calls'))
  } finally {
    remove(folder)
  }
}

/** The results of trials, as rows and remarks. */
export function rowsOf(
  release: string,
  { recorded, rows: [again, ...others] }: Tried,
  [, ...configurations]: readonly Configuration[],
  apart?: WhatIfOptions['apart'],
): { rows: WhatIfRow[]; remarks: string[] } {
  // The replay has placed every arena where it was. The trial with the recorded sizes must give the same figures.
  const isSame = again!.held === recorded.held && again!.peakHeld === recorded.peakHeld && again!.maps === recorded.maps
  const remarks = isSame
    ? []
    : [`made again, the recorded setting holds ${again!.held} bytes, and not ${recorded.held}: rows may be off by as much`]
  const first: WhatIfRow = {
    name: `as recorded (${release})`,
    kind: 'exact',
    ...again!,
    ...pick(recorded),
    difference: 0,
    setting: null,
  }
  const trimmed = recorded.trimmable > 0 ? [trimmedRow(first, recorded.trimmable)] : []
  const rows = others.map((made, index): WhatIfRow => {
    const configuration = configurations[index]!
    const kind = isSame && isOfARelease(configuration) ? 'exact' : 'model'
    const difference = made.held - recorded.held
    return { name: nameOf(configuration, apart), kind, ...made, difference, setting: settingOf(configuration) }
  })
  return { rows: [first, ...trimmed, ...rows], remarks }
}

/** Bytes of arenas that stay resident after the pages of empty pools are given back. Assumes that the program had touched all of them. */
function trimmedRow(recorded: WhatIfRow, trimmable: number): WhatIfRow {
  const { held, lost } = recorded
  const setting = 'obmalloc trim -- …'
  return {
    ...recorded,
    name: 'trimmed at the moment',
    kind: 'model',
    held: held - trimmable,
    difference: -trimmable,
    lost: lost === null ? null : lost - trimmable,
    setting,
  }
}

function pick({ peakHeld, held, maps, unmaps }: Omit<Made, 'lost' | 'nanoseconds'>) {
  return { peakHeld, held, maps, unmaps }
}

/** Whether some release has these sizes, so that nothing has to be assumed. */
function isOfARelease({ arena, pool, threshold, apart }: Configuration): boolean {
  return arena === undefined && pool === undefined && threshold === undefined && apart !== true
}

function nameOf({ release, arena, pool, threshold, apart }: Configuration, site?: { file: string; line: number }): string {
  const parts = [
    ...(release === undefined ? [] : [`rules of ${release}`]),
    ...(arena === undefined ? [] : [`arenas of ${sizeOf(arena)}`]),
    ...(pool === undefined ? [] : [`pools of ${sizeOf(pool)}`]),
    ...(threshold === undefined ? [] : [`small up to ${threshold}`]),
    ...(apart ? [`${site?.file}:${site?.line} apart`] : []),
  ]
  return parts.length === 0 ? 'as recorded' : parts.join(', ')
}

function sizeOf(bytes: number): string {
  return bytes % 2 ** 20 === 0 ? `${bytes / 2 ** 20} MiB` : `${bytes / 1024} KiB`
}

/** How a CPython gets this setting. */
function settingOf({ release, arena, pool, threshold, apart }: Configuration): string | null {
  if (apart) return null
  const macros = [
    ...(arena === undefined ? [] : [`ARENA_BITS ${Math.log2(arena)}`]),
    ...(pool === undefined ? [] : [`POOL_BITS ${Math.log2(pool)}`]),
    ...(threshold === undefined ? [] : [`SMALL_REQUEST_THRESHOLD ${threshold}`]),
  ]
  const built = macros.length === 0 ? [] : [`built with ${macros.join(', ')}`]
  return `CPython ${[...(release === undefined ? [] : [release]), ...built].join(' ')}`
}

/** The allocator that is called so. */
export function allocatorNamed(name: string): AllocatorName {
  if (!Object.hasOwn(ALLOCATORS, name))
    throw new UsageError(`expected an allocator (${Object.keys(ALLOCATORS).join(', ')}), but got ${name}`)
  return name as AllocatorName
}

/** The path of an allocator on this system, if it has one. */
export function findAllocator(name: AllocatorName): string | undefined {
  const pattern = ALLOCATORS[name]
  if (pattern === null) return ''
  const folders = ['/usr/lib/x86_64-linux-gnu', '/usr/lib/aarch64-linux-gnu', '/usr/lib64', '/usr/lib', '/usr/local/lib']
  return folders
    .filter((folder) => existsSync(folder))
    .flatMap((folder) =>
      readdirSync(folder)
        .filter((file) => pattern.test(file))
        .map((file) => join(folder, file)),
    )
    .sort((a, b) => a.length - b.length)[0]
}

/**
 * Makes the calls in a process for each allocator, and in one more with pymalloc to compare them with. What cannot be measured becomes a
 * remark.
 */
export async function measureAll(
  calls: string,
  release: string,
  allocators: readonly AllocatorName[],
  signal?: AbortSignalLike,
  onProgress?: WhatIfOptions['onProgress'],
): Promise<{ rows: WhatIfRow[]; remarks: string[] }> {
  const remarks: string[] = []
  const tryTo = async (what: string, library: string, args: readonly string[]): Promise<Measured | null> => {
    try {
      return await measure(library, args, signal)
    } catch (error) {
      signal?.throwIfAborted()
      remarks.push(`${what} not measured: ${reasonOf(error as Error)}`)
      return null
    }
  }
  const pymalloc = allocators.length === 0 ? null : await tryTo('allocators were', '', [calls, 'pymalloc', release])
  if (pymalloc === null) return { rows: [], remarks }
  const rows = [measuredRow(`pymalloc of ${release}, resident`, pymalloc, pymalloc.held, null)]
  for (const [index, name] of allocators.entries()) {
    onProgress?.(name, index, allocators.length)
    const library = findAllocator(name)
    if (library === undefined) {
      remarks.push(`${name} was not measured: this system has no library of it`)
      continue
    }
    const setting = ['PYTHONMALLOC=malloc', ...(library === '' ? [] : [`LD_PRELOAD=${library}`])].join(' ')
    const measured = await tryTo(`${name} was`, library, [calls])
    if (measured !== null) rows.push(measuredRow(name, measured, pymalloc.held, setting))
  }
  return { rows, remarks }
}

/** Why a process could not be measured, in a line: the last one that it wrote, if it wrote any. */
function reasonOf({ message, stderr = '' }: Error & { readonly stderr?: string }): string {
  return stderr.trim().split('\n').at(-1) || message.split('\n')[0]!
}

interface Measured {
  readonly peak: number
  readonly held: number
  readonly nanoseconds: number
}

function measuredRow(name: string, { peak, held, nanoseconds }: Measured, reference: number, setting: string | null): WhatIfRow {
  const nothing = { lost: null, maps: null, unmaps: null }
  return { name, kind: 'measured', peakHeld: peak, held, difference: held - reference, ...nothing, nanoseconds, setting }
}

/** Two processes: one that touches every byte, for the memory, and one that touches nothing, for the time. */
async function measure(library: string, args: readonly string[], signal: AbortSignalLike | undefined): Promise<Measured> {
  const env = { ...process.env, LD_PRELOAD: library }
  const run = async (...more: string[]) => {
    signal?.throwIfAborted()
    const running = promisify(execFile)(measurer(), [...args, ...more], { env })
    const end = (): void => void running.child.kill()
    signal?.addEventListener('abort', end, { once: true })
    const { stdout } = await running.finally(() => signal?.removeEventListener('abort', end))
    return JSON.parse(stdout) as { peak: number; held: number; nanoseconds: number | null }
  }
  const [{ peak, held }, { nanoseconds }] = [await run(), await run('time')]
  return { peak, held, nanoseconds: nanoseconds ?? 0 }
}
