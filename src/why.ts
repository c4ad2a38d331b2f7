/** Finds what holds a recorded program's memory: runs the native analysis of a trace, in slices so that progress can be shown. */

import { basename } from 'node:path'

import type { InquiryOptions } from '../index.js'
import { native } from './native.js'
import type { Arena, Finding, Frame, Site, Totals, Why } from './report-data.js'
import { recordedRelease } from './release.js'
import { reading } from './replaying.js'
import { printable } from './terminal.js'
import { readHeader, segments } from './trace.js'

export type { InquiryOptions } from '../index.js'

export type { Arena, Finding, Frame, Site, Totals, Why }

export interface Answer {
  readonly why: Why
  /** The answer in words, a line each. */
  readonly summary: readonly string[]
}

/** Events looked at between two looks at the clock and the terminal. */
const SLICE = 200_000

/** Rules that find nothing wrong: the others make `why` end with 1. */
const HARMLESS = new Set(['not-pythons', 'live', 'cannot-tell', 'interpreters', 'unverified'])

/** Whether a finding says that something could be better. Memory that C's `malloc` has is only worth knowing; its free memory could be given back. */
export function isFault({ rule, saves }: Finding): boolean {
  return !HARMLESS.has(rule) && (rule !== 'large' || saves > 0)
}

/** Whether the replay came to the moment, and went as recorded: every address was the same, and so was what was asked for below. */
export function isVerified({ verified, findings }: Pick<Why, 'verified' | 'findings'>): boolean {
  return verified.matched === verified.addresses && !findings.some(({ rule }) => rule === 'unverified')
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

/** Runs an inquiry, with further parts of the native analysis. */
export async function ask(
  path: string,
  { at, signal, onProgress, ...wanted }: InquiryOptions & { readonly [wanted: string]: unknown },
): Promise<unknown> {
  signal?.throwIfAborted()
  const header = readHeader(path)
  const options = {
    release: recordedRelease(path, header),
    segments: segments(path),
    path,
    python: header.python,
    at: at ?? 'end',
    frames: header.stacks ?? 0,
    failed: header.failed ?? null,
    command: header.argv,
    ...wanted,
  }
  const inquiry = reading(() => native.openInquiry(JSON.stringify(options)))
  try {
    while (reading(() => native.stepInquiry(inquiry, SLICE), path) !== 0) {
      onProgress?.(...native.progressInquiry(inquiry))
      await new Promise((done) => setImmediate(done))
      signal?.throwIfAborted()
    }
    return JSON.parse(reading(() => native.answerInquiry(inquiry)))
  } finally {
    native.closeInquiry(inquiry)
  }
}

/**
 * The innermost frame in a file of the program's own, else the innermost one of its own. Code that was made at run time is of no file, as the
 * constructor of a dataclass.
 */
export function ownFrame(stack: readonly Frame[]): Frame | undefined {
  // Some systems have the library in lib64.
  const own = stack.filter(({ file }) => !/^<frozen|\/lib\d*\/python\d|\/site-packages\//.test(file))
  return own.find(({ file }) => !file.startsWith('<')) ?? own[0]
}

/** The innermost frame outside the import system, and that of the program's own which called it: a line that imports stands for the import. */
export function where(stack: readonly Frame[]): string {
  const first = stack.find(({ file }) => !file.startsWith('<frozen importlib')) ?? stack[0]
  if (!first) return '(no Python frame)'
  const own = ownFrame(stack)
  const said = ({ file, line, function: name }: Frame): string => `${name} (${basename(file)}:${line})`
  return printable(own && own !== first ? `${said(first)} < ${said(own)}` : said(first))
}
