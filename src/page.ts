/** The page's data, `obmalloc.report/1`, as the native analysis gives it. */

import { readFileSync } from 'node:fs'
import { join } from 'node:path'

import type { Column, ReportData } from './report-data.js'
import { readHeader } from './trace.js'
import { ask, type InquiryOptions } from './why.js'

export type { Column }

/** Asks for the page's data at a moment. Throws `TraceError` when the trace cannot be read. */
export async function pageOf(path: string, options: InquiryOptions = {}): Promise<ReportData> {
  const { version } = JSON.parse(readFileSync(join(__dirname, '..', 'package.json'), 'utf8')) as { version: string }
  return (await ask(path, { ...options, report: true, command: readHeader(path).argv, version })) as ReportData
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
