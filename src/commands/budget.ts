/** `obmalloc budget`: checks a recording against limits. Ends with 1 when one is broken. */

import { readFileSync } from 'node:fs'

import type { TraceHeader } from '../../index.js'
import { budget, type Budget, type Limits, limitsOf, noiseOf, type Verdict } from '../budget.js'
import { emit, type Output, writeNew } from '../output.js'
import { bytes, sizeOf } from '../size.js'
import { commandOn, grouped, next, paint, Progress, say, sayUnverified } from '../terminal.js'
import { pathOf } from '../sources.js'
import { readHeader } from '../trace.js'
import { UsageError } from '../usage.js'
import { type Frame, ownFrame, where } from '../why.js'

export interface BudgetCommandOptions extends Output {
  readonly at?: string
  readonly peak?: string
  readonly held?: string
  readonly pinned?: string
  readonly growth?: string
  readonly mark?: string
  readonly config?: string
  readonly update?: boolean
  readonly baseline?: string
  readonly tolerance: string
  readonly format: string
  readonly json?: boolean
}

const FORMATS = ['text', 'github', 'junit']

export async function budgetCommand(path: string, options: BudgetCommandOptions): Promise<number> {
  const { at, format, config, update = false, baseline, json = false } = options
  if (!FORMATS.includes(format)) throw new UsageError(`expected --format ${FORMATS.join(', ')}, but got ${format}`)
  const tolerance = percentOf(options.tolerance)
  if (update && config === undefined) throw new UsageError('expected --config FILE, which --update writes')
  const progress = new Progress()
  const asked = {
    at,
    onProgress: (done: number, total: number) => progress.update(`${path}: ${Math.round((100 * done) / Math.max(total, 1))} %`),
  }
  const measure = (file: string, limits: Limits): Promise<Budget> => budget(file, limits, asked).finally(() => progress.done())
  if (update && baseline !== undefined) throw new UsageError('expected --update or --baseline, but got both')
  const given = limitsGiven(options)
  const limits: Limits = { ...(config === undefined || (update && !isThere(config)) ? {} : readLimits(config)), ...given }
  if (baseline !== undefined) {
    const before = await measure(baseline, isEmpty(limits) ? EVERYTHING : limits)
    return tell(await measure(path, { ...limitsOf(before, tolerance), ...given }), format, json, options)
  }
  if (update) {
    const measured = await measure(path, isEmpty(limits) ? EVERYTHING : limits)
    const allowed = limitsOf(measured, tolerance, noiseOf(measured))
    writeNew(config!, `${JSON.stringify(inWriting(allowed), null, 2)}\n`, true)
    say(`written to ${config}`)
    return tell(within(measured, allowed), format, json, options)
  }
  if (isEmpty(limits))
    throw new UsageError('expected a limit: --peak, --held, --pinned, --growth with --mark, --config or --baseline')
  return tell(await measure(path, limits), format, json, options)
}

/** What is measured by default. */
const EVERYTHING: Limits = { peak: Infinity, held: Infinity, pinned: Infinity }

function isEmpty({ growth, ...others }: Limits): boolean {
  return Object.keys({ ...others, ...growth }).length === 0
}

/** What was measured, held against the limits that were made of it. */
function within(measured: Budget, { growth, ...others }: Limits): Budget {
  const verdicts = measured.verdicts.map((verdict) => {
    const { limit, mark } = verdict
    const allowed = (limit === 'growth' ? growth?.[mark!] : others[limit]) ?? verdict.allowed
    return { ...verdict, allowed, broken: false }
  })
  return { ...measured, broken: false, verdicts }
}

function isThere(path: string): boolean {
  try {
    readFileSync(path)
    return true
  } catch {
    return false
  }
}

function limitsGiven({ peak, held, pinned, growth, mark }: BudgetCommandOptions): Limits {
  if ((growth === undefined) !== (mark === undefined))
    throw new UsageError('expected --growth SIZE and --mark NAME, but got one of them')
  return {
    ...(peak === undefined ? {} : { peak: sizeOf(peak) }),
    ...(held === undefined ? {} : { held: sizeOf(held) }),
    ...(pinned === undefined ? {} : { pinned: shareOf(pinned) }),
    ...(growth === undefined ? {} : { growth: { [mark!]: sizeOf(growth) } }),
  }
}

function percentOf(text: string): number {
  if (!/^\d{1,15}(\.\d+)?%?$/.test(text)) throw new UsageError(`expected a percentage like 10, but got ${text}`)
  return Number.parseFloat(text)
}

/** A percentage of a whole. */
function shareOf(text: string): number {
  const share = percentOf(text)
  if (share > 100) throw new UsageError(`expected a percentage from 0 to 100, but got ${text}`)
  return share
}

/** A file of limits: `{"peak": "100M", "held": "20M", "pinned": 50, "growth": {"after job": "10K"}}`. */
export function readLimits(path: string): Limits {
  let read: unknown
  try {
    read = JSON.parse(readFileSync(path, 'utf8'))
  } catch (cause) {
    throw new UsageError(`cannot read limits from ${path}: ${(cause as Error).message}`)
  }
  const wrong = (what: string): UsageError =>
    new UsageError(`${path}: expected limits as {"peak": "100M", "pinned": 50}, but got ${what}`)
  const isObject = (value: unknown): value is Record<string, unknown> =>
    typeof value === 'object' && value !== null && !Array.isArray(value)
  if (!isObject(read)) throw wrong(JSON.stringify(read))
  const limits: { -readonly [limit in keyof Limits]: Limits[limit] } = {}
  for (const [name, value] of Object.entries(read)) {
    // JSON's numbers are read as they are written on the command line.
    const of = (read: (text: string) => number, value: unknown): number => {
      if (typeof value !== 'number' && typeof value !== 'string') throw wrong(JSON.stringify({ [name]: value }))
      try {
        return read(String(value))
      } catch (error) {
        throw new UsageError(`${path}: ${name}: ${(error as Error).message}`)
      }
    }
    if (name === 'peak' || name === 'held') limits[name] = of(sizeOf, value)
    else if (name === 'pinned') limits.pinned = of(shareOf, value)
    else if (name === 'growth' && isObject(value))
      limits.growth = Object.fromEntries(Object.entries(value).map(([mark, bytes]) => [mark, of(sizeOf, bytes)]))
    else throw wrong(JSON.stringify({ [name]: value }))
  }
  return limits
}

/** Limits as they are written: sizes in the largest unit that they are a whole number of. */
function inWriting({ peak, held, pinned, growth }: Limits): object {
  const written = (size: number): string | number =>
    size % 2 ** 20 === 0 ? `${size / 2 ** 20}M` : size % 1024 === 0 ? `${size / 1024}K` : size
  return {
    ...(peak === undefined ? {} : { peak: written(peak) }),
    ...(held === undefined ? {} : { held: written(held) }),
    ...(pinned === undefined ? {} : { pinned }),
    ...(growth === undefined
      ? {}
      : { growth: Object.fromEntries(Object.entries(growth).map(([mark, size]) => [mark, written(size)])) }),
  }
}

function tell(answer: Budget, format: string, json: boolean, output: Output): number {
  emit(json ? `${JSON.stringify(answer)}\n` : written(answer, format), output)
  if (!answer.verified) {
    sayUnverified(answer.path)
    return 4
  }
  return answer.broken ? 1 : 0
}

function written(answer: Budget, format: string): string {
  if (format === 'junit') return inJunit(answer)
  if (format === 'github') {
    const header = readHeader(answer.path)
    return answer.verdicts.map((verdict) => inGithub(verdict, header)).join('')
  }
  const lines = answer.verdicts.map((verdict) => {
    const state = verdict.broken ? paint('red', 'broken', process.stdout) : paint('green', 'kept', process.stdout)
    return `${state}  ${inWords(verdict)}`
  })
  return `${[...lines, '', next(commandOn('why', answer.path, answer.at.moment))].join('\n')}\n`
}

function titleOf({ limit, mark }: Verdict): string {
  return mark === undefined ? limit : `growth a mark ${JSON.stringify(mark)}`
}

function inWords(verdict: Verdict): string {
  const { limit, measured, allowed, broken, stack } = verdict
  // Two sizes that differ must also differ as text.
  const isClose = measured !== allowed && bytes(Math.round(measured)) === bytes(Math.round(allowed))
  const size = (number: number): string => (isClose ? `${grouped(Math.round(number))} B` : bytes(Math.round(number)))
  const said = (number: number): string => (limit === 'pinned' ? `${number.toFixed(1)} %` : size(number))
  const allows =
    allowed === Infinity ? '' : limit === 'growth' ? ` of less than ${said(allowed)}` : ` of at most ${said(allowed)}`
  const over = broken ? `, ${said(measured - allowed)} over` : ''
  const who = stack.length === 0 ? '' : `; most of it by ${where(stack)}`
  return `${titleOf(verdict)}: ${said(measured)}${allows}${over}${broken ? who : ''}`
}

/** The frame to annotate: the program's own, else one that is in a file at all. */
function annotated(stack: readonly Frame[]): Frame | undefined {
  const inFiles = stack.filter(({ file }) => file !== '' && !file.startsWith('<'))
  return ownFrame(inFiles) ?? inFiles[0]
}

function inGithub(verdict: Verdict, header: TraceHeader): string {
  const escaped = (text: string): string => text.replaceAll('%', '%25').replaceAll('\r', '%0D').replaceAll('\n', '%0A')
  const property = (text: string): string => escaped(text).replaceAll(':', '%3A').replaceAll(',', '%2C')
  if (!verdict.broken) return `::notice title=obmalloc budget::${escaped(inWords(verdict))}\n`
  const frame = annotated(verdict.stack)
  // Annotations name files of the repository, from its root.
  const root = `${process.cwd()}/`
  const path = frame && (pathOf(frame.file, header) ?? frame.file)
  const file = path?.startsWith(root) ? path.slice(root.length) : path
  const place = file === undefined ? '' : `file=${property(file)},line=${frame!.line},`
  return `::error ${place}title=obmalloc budget::${escaped(inWords(verdict))}\n`
}

function inJunit({ path, verdicts }: Budget): string {
  const escaped = (text: string): string =>
    text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;')
  const cases = verdicts.map((verdict) => {
    const open = `    <testcase classname="${escaped(path)}" name="${escaped(titleOf(verdict))}"`
    return verdict.broken ? `${open}>\n      <failure message="${escaped(inWords(verdict))}"/>\n    </testcase>` : `${open}/>`
  })
  const failures = verdicts.filter(({ broken }) => broken).length
  const head = `  <testsuite name="obmalloc budget" tests="${verdicts.length}" failures="${failures}">`
  return `${['<?xml version="1.0" encoding="UTF-8"?>', '<testsuites>', head, ...cases, '  </testsuite>', '</testsuites>'].join('\n')}\n`
}
