/** The page's data, `obmalloc.report/1`, as the native analysis gives it. */

import { readFileSync } from 'node:fs'
import { join } from 'node:path'

import type { Column, ReportData } from './report-data.js'
import type { Configuration, Tried } from './what-if.js'
import { ask, type InquiryOptions } from './why.js'

/** Other settings that are tried at the moment. */
export interface Tries {
  readonly configurations: readonly Configuration[]
  /** Where the calls are written, to a file that is not there yet: eight bytes an event. */
  readonly calls: string
  /** Nothing is tried at a moment that is later than this event. */
  readonly mostEvents: number
}

/** Asks for the page's data at a moment. Throws `TraceError` when the trace cannot be read. */
export async function pageOf(path: string, options: InquiryOptions = {}): Promise<ReportData> {
  return (await pageAndTried(path, options)).page
}

/** As {@link pageOf}, with what came of `tries`; an error in words where a trial could not go on. */
export async function pageAndTried(
  path: string,
  { tries, ...options }: InquiryOptions & { readonly tries?: Tries },
): Promise<{ page: ReportData; tried: Tried | null; triedError: string | null }> {
  const { version } = JSON.parse(readFileSync(join(__dirname, '..', 'package.json'), 'utf8')) as { version: string }
  const wanted = { ...options, report: true, version, ...(tries ? { tries } : {}) }
  const { tried, triedError, ...page } = (await ask(path, wanted)) as ReportData & {
    readonly tried: Tried | null
    readonly triedError: string | null
  }
  return { page, tried, triedError }
}

/** The numbers of a column. */
export function decode(column: Column): Uint8Array | Uint16Array | Uint32Array | Float64Array {
  const [[width, text]] = Object.entries(column) as [[string, string]]
  const bytes = Buffer.from(text, 'base64')
  const { buffer } = new Uint8Array(bytes)
  if (width === 'u8') return new Uint8Array(buffer)
  if (width === 'u16') return new Uint16Array(buffer)
  return width === 'u32' ? new Uint32Array(buffer) : new Float64Array(buffer)
}
