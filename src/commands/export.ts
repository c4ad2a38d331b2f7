/** `obmalloc export`: a recording's figures in another tool's format. */

import { existsSync } from 'node:fs'

import { exportTrace, type Figure, FIGURES, type Format, FORMATS } from '../export.js'
import { type Output, writeNew } from '../output.js'
import { commandOn, next, opening, Progress, quoted, say, sayUnverified } from '../terminal.js'
import { UsageError } from '../usage.js'

export interface ExportCommandOptions extends Output {
  readonly to: string
  readonly at?: string
  readonly what: string
  readonly json?: boolean
}

/** How to open each format. */
const NEXT: Record<Format, (file: string, why: string) => string> = {
  pprof: (file) => `go tool pprof -http=: ${file}`,
  speedscope: (file) => `npx speedscope ${file}`,
  collapsed: (file) => `flamegraph.pl ${file} > flame.svg`,
  'trace-events': (file) => `${opening('https://ui.perfetto.dev')} # and drop ${file} there`,
  csv: (_, why) => why,
}

export async function exportCommand(path: string, options: ExportCommandOptions): Promise<number> {
  const { to, at, what, output, force = false, json = false } = options
  const [format, figure] = [FORMATS.find((name) => name === to), FIGURES.find((name) => name === what)]
  if (!format) throw new UsageError(`expected --to ${FORMATS.join(', ')}, but got ${to}`)
  if (!figure) throw new UsageError(`expected --what ${FIGURES.join(', ')}, but got ${what}`)
  if (json && output === undefined)
    throw new UsageError('expected a file with --json, as in -o FILE: without one, stdout is the export')
  // Before the work, not after it.
  if (output !== undefined && !force && existsSync(output))
    throw new UsageError(`${output} is there already; --force replaces it`)
  const progress = new Progress()
  const { data, verified } = await exportTrace(path, format, {
    at,
    what: figure satisfies Figure,
    onProgress: (done, total) => progress.update(`${path}: ${Math.round((100 * done) / Math.max(total, 1))} %`),
  }).finally(() => progress.done())
  if (output === undefined) process.stdout.write(data)
  else {
    writeNew(output, data, force)
    say(`written to ${output}`)
  }
  if (json)
    process.stdout.write(`${JSON.stringify({ trace: path, to, what, output, bytes: Buffer.byteLength(data), verified })}\n`)
  if (!verified) sayUnverified(path)
  if (!json) say(next(NEXT[format](output === undefined ? 'FILE' : quoted(output), commandOn('why', path, at))))
  return verified ? 0 : 4
}
