/** `obmalloc report`: writes the page of a recording, and prints the answer. Ends as `why` does: 1 with a finding, 4 when not verified. */

import { existsSync, statSync } from 'node:fs'

import { type Output, writeNew } from '../output.js'
import { page, sourceLines } from '../report.js'
import { bytes } from '../size.js'
import { next, opening, paint, Progress, say } from '../terminal.js'
import { readHeader } from '../trace.js'
import { pageAndOthers, withTried } from '../tried.js'
import { UsageError } from '../usage.js'
import { isFault, isVerified } from '../why.js'

export interface ReportCommandOptions extends Output {
  readonly at?: string
  readonly sources: string
  readonly json?: boolean
}

export async function reportCommand(path: string, options: ReportCommandOptions): Promise<number> {
  const { at, sources, json, force = false, output = `${path}.html` } = options
  if (sources !== 'none' && sources !== 'lines') throw new UsageError(`expected none or lines as sources, but got ${sources}`)
  // Before the work, not after it.
  if (!force && existsSync(output)) throw new UsageError(`${output} is there already; --force replaces it`)
  const progress = new Progress()
  const told = (what: string, done: number, total: number): void =>
    progress.update(`${what}: ${Math.round((100 * done) / Math.max(total, 1))} %`)
  const onProgress = (done: number, total: number): void => told(path, done, total)
  const { page: found, rows: tried } = await pageAndOthers(path, { at, onProgress }, told).finally(() => progress.done())
  const lines =
    sources === 'lines'
      ? sourceLines([...found.frames, ...found.why.sites.flatMap(({ stack }) => stack)], statSync(path).mtimeMs, readHeader(path))
      : undefined
  if (lines && lines.changed.length > 0)
    say(`changed since the recording, so that their lines are not shown: ${lines.changed.join(', ')}`)
  const summary = withTried(found, tried)
  const data = { ...found, summary, sources: lines?.found ?? {}, whatIf: tried }
  const html = page(data)
  writeNew(output, html, force)
  const { why } = data
  if (json) {
    process.stdout.write(`${JSON.stringify(data)}\n`)
    say(`written to ${output}`)
  } else {
    const [first = '', ...rest] = summary
    const said = [paint('bold', first, process.stdout), ...rest, '', `page: ${output}, ${bytes(html.length)}`]
    process.stdout.write(`${said.join('\n')}\n${next(opening(output))}\n`)
  }
  if (!isVerified(why)) return 4
  return why.findings.some(isFault) ? 1 : 0
}
