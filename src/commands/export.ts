/** `obmalloc export`: a recording's figures in another tool's format. */

import { exportTrace, type Figure, FIGURES, type Format, FORMATS } from '../export.js'
import { type Output, writeNew } from '../output.js'
import { Progress, say } from '../terminal.js'
import { UsageError } from '../usage.js'

export interface ExportCommandOptions extends Output {
  readonly to: string
  readonly at?: string
  readonly what: string
}

/** How each is looked at. */
const NEXT: Record<Format, string> = {
  pprof: 'go tool pprof -http=: FILE',
  speedscope: 'open https://www.speedscope.app and drop FILE there',
  collapsed: 'flamegraph.pl FILE > flame.svg',
  'trace-events': 'open https://ui.perfetto.dev and drop FILE there',
  csv: '',
}

export async function exportCommand(path: string, { to, at, what, output, force }: ExportCommandOptions): Promise<number> {
  const [format, figure] = [FORMATS.find((name) => name === to), FIGURES.find((name) => name === what)]
  if (!format) throw new UsageError(`expected --to ${FORMATS.join(', ')}, but got ${to}`)
  if (!figure) throw new UsageError(`expected --what ${FIGURES.join(', ')}, but got ${what}`)
  const progress = new Progress()
  const data = await exportTrace(path, format, {
    at,
    what: figure satisfies Figure,
    onProgress: (done, total) => progress.update(`${path}: ${Math.round((100 * done) / Math.max(total, 1))} %`),
  }).finally(() => progress.done())
  if (output === undefined) {
    process.stdout.write(data)
    return 0
  }
  writeNew(output, data, force)
  say(`written to ${output}`)
  if (NEXT[format] !== '') say(`next: ${NEXT[format].replace('FILE', output)}`)
  return 0
}
