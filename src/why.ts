/** What holds a recorded program's memory: the analysis of a trace, in slices so that progress can be shown. */

import { basename } from 'node:path'

import { native } from './native.js'
import { releaseOf } from './release.js'
import { reading } from './replaying.js'
import { readHeader, segments } from './trace.js'

/** A frame of a stack. */
export interface Frame {
  readonly file: string
  readonly line: number
  readonly function: string
}

/** A stack that asked for memory, and what it has live. Sizes in bytes, moments as event numbers. */
export interface Site {
  /** Innermost frame first; empty for C code without a Python frame. */
  readonly stack: readonly Frame[]
  /** Live blocks in pools, and their bytes at the size class's size. */
  readonly blocks: number
  readonly live: number
  /** Its share of the arenas: each divided among the sites of its live blocks by their number. The shares sum to what is held. */
  readonly held: number
  readonly arenasTouched: number
  /** Arenas in which no other site has a block. */
  readonly arenasPinnedAlone: number
  readonly bornFirst: number | null
  readonly bornLast: number | null
  /** Live at C's `malloc`: on the raw domain, and above 512 bytes on mem and obj. */
  readonly raw: number
  readonly large: number
}

export interface Arena {
  readonly address: string
  /** Pools that hold blocks, and those that hold none. */
  readonly pools: number
  readonly freePools: number
  readonly blocks: number
  readonly live: number
  /** The event at which it was taken. */
  readonly born: number
  /** Sites, by index, with most blocks first. */
  readonly pinnedBy: readonly { readonly site: number; readonly blocks: number }[]
}

export interface Finding {
  readonly rule: string
  readonly text: string
  /** The site that it is about, by index. */
  readonly site: number | null
  /** Bytes, where they are known; else 0. */
  readonly saves: number
  readonly command: string
  /** All sites that it is about, and those of the blocks that lay around theirs. */
  readonly sites: readonly number[]
  readonly burst: readonly number[]
}

/** `held = live + freeInPools + freePools + rounding`. */
export interface Totals {
  readonly arenas: number
  readonly held: number
  /** What the same blocks would take if they lay packed. */
  readonly needed: number
  readonly live: number
  readonly blocks: number
  readonly freeInPools: number
  readonly freePools: number
  readonly rounding: number
  readonly raw: number
  readonly large: number
  /** Whole pages of empty pools. */
  readonly trimmable: number
  /** Null where it was not sampled. */
  readonly resident: number | null
  readonly unexplained: number | null
}

/** The answer: `obmalloc.why/1`, which `schema/why-1.json` describes. */
export interface Why {
  readonly schema: 'obmalloc.why/1'
  readonly trace: {
    readonly path: string
    readonly python: string
    readonly release: string
    readonly events: number
    readonly seconds: number | null
    readonly complete: boolean
    readonly marks: readonly { readonly name: string; readonly event: number; readonly seconds: number | null }[]
  }
  /** Addresses that were compared on the way to the moment, and those of them that are equal. */
  readonly verified: { readonly addresses: number; readonly matched: number }
  readonly at: { readonly event: number; readonly seconds: number | null; readonly moment: string }
  readonly totals: Totals
  readonly pinned: { readonly arenas: number; readonly bytes: number; readonly blocks: number }
  readonly sites: readonly Site[]
  readonly arenas: readonly Arena[]
  /** How many sites and arenas are here, of how many. */
  readonly bounded: { readonly sites: readonly [number, number]; readonly arenas: readonly [number, number] }
  /** So many blocks must go for so many arenas, fewest first. */
  readonly greedy: readonly (readonly [number, number])[]
  readonly findings: readonly Finding[]
}

export interface Answer {
  readonly why: Why
  /** The answer in words, a line each. */
  readonly summary: readonly string[]
}

export interface InquiryOptions {
  /** `end` (the default), `peak`, `mark:NAME`, `mark:NAME#2`, `event:N` or `time:SECONDS`. */
  readonly at?: string | undefined
  readonly signal?: AbortSignal
  readonly onProgress?: (done: number, total: number) => void
}

/** Events looked at between two looks at the clock and the terminal. */
const SLICE = 200_000

/** Rules that find nothing wrong: the others make `why` end with 1. */
const HARMLESS = new Set(['live', 'cannot-tell', 'interpreters', 'unverified'])

/** Whether a finding says that something could be better. What C's `malloc` has is worth knowing; what it keeps free could be had back. */
export function isFault({ rule, saves }: Finding): boolean {
  return !HARMLESS.has(rule) && (rule !== 'large' || saves > 0)
}

/** Asks what holds the memory at a moment. Throws `TraceError` when the trace cannot be read. */
export async function inquire(path: string, { at, signal, onProgress }: InquiryOptions = {}): Promise<Answer> {
  return (await ask(path, { at, signal, onProgress })) as Answer
}

/** What the rows of a table are: whole stacks, the innermost frame's function or file, size classes. */
export type TopBy = 'site' | 'function' | 'file' | 'class'

/** A row of a table. Allocated, freed and temporary are bytes as they were asked for, up to the moment. */
export interface TopRow {
  readonly name: string
  /** Of a site. */
  readonly stack?: readonly Frame[]
  readonly allocated: number
  readonly freed: number
  readonly live: number
  readonly blocks: number
  /** The share of what is held; of a size class, its pools. */
  readonly held: number
  /** At C's `malloc`. */
  readonly outside: number
  /** What died within 10,000 events after it was made. */
  readonly temporary: number
}

/** As {@link inquire}, with a table of what sites, functions, files or size classes have asked for, and have. */
export async function topOf(
  path: string,
  by: TopBy,
  options: InquiryOptions = {},
): Promise<Answer & { readonly table: readonly TopRow[] }> {
  return (await ask(path, { ...options, by })) as Answer & { readonly table: readonly TopRow[] }
}

/** Asks, with what else the native analysis is to give. */
export async function ask(
  path: string,
  { at, signal, onProgress, ...wanted }: InquiryOptions & { readonly [wanted: string]: unknown },
): Promise<unknown> {
  signal?.throwIfAborted()
  const header = readHeader(path)
  const options = {
    release: releaseOf(header.python),
    segments: segments(path),
    path,
    python: header.python,
    at: at ?? 'end',
    frames: header.stacks ?? 0,
    failed: header.failed ?? null,
    ...wanted,
  }
  const inquiry = reading(() => native.openInquiry(JSON.stringify(options)))
  try {
    while (reading(() => native.stepInquiry(inquiry, SLICE)) !== 0) {
      signal?.throwIfAborted()
      onProgress?.(...native.progressInquiry(inquiry))
      await new Promise((done) => setImmediate(done))
    }
    return JSON.parse(reading(() => native.answerInquiry(inquiry)))
  } finally {
    native.closeInquiry(inquiry)
  }
}

/** The innermost frame, and that of the program's own which called it. */
export function where(stack: readonly Frame[]): string {
  const [first] = stack
  if (!first) return '(no Python frame)'
  const own = stack.find(({ file }) => !/^<frozen|\/lib\/python|\/site-packages\//.test(file))
  const said = ({ file, line, function: name }: Frame): string => `${name} (${basename(file)}:${line})`
  return own && own !== first ? `${said(first)} < ${said(own)}` : said(first)
}
