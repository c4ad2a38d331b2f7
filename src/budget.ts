/** Budgets: limits on what a recorded program may take, for a gate in CI. */

import { UsageError } from './usage.js'
import { ask, type Answer, type Frame, inquire, type InquiryOptions, isVerified, type Site } from './why.js'

/** The limits; sizes in bytes. A limit that is left out is not checked. */
export interface Limits {
  /** Most bytes of arenas, at the peak. */
  readonly peak?: number
  /** Most bytes of arenas, at the moment. */
  readonly held?: number
  /** Most percent of the bytes held at the moment that may be pinned: held, and not needed if the same blocks lay packed. */
  readonly pinned?: number
  /** By the name of marks: growth of live bytes from mark to mark that breaks the limit. Growth of exactly this much breaks it, too. */
  readonly growth?: Readonly<Record<string, number>>
}

/** A limit, and the measured value. */
export interface Verdict {
  readonly limit: 'peak' | 'held' | 'pinned' | 'growth'
  /** Of growth: the marks' name. */
  readonly mark?: string
  /** Bytes, or percent. */
  readonly measured: number
  readonly allowed: number
  readonly broken: boolean
  /** The stack that takes most of it, innermost frame first; empty if that is not known. */
  readonly stack: readonly Frame[]
}

export interface Budget {
  readonly schema: 'obmalloc.budget/1'
  readonly path: string
  readonly at: { readonly event: number; readonly seconds: number | null; readonly moment: string }
  /** How many arenas are held at the moment, and the bytes of one. */
  readonly arenas: number
  readonly arenaSize: number
  readonly verdicts: readonly Verdict[]
  readonly broken: boolean
  /** Whether every replayed address is as recorded. */
  readonly verified: boolean
}

interface Growth {
  readonly mark: string
  /** How many there are; of very many, `live` has some, the first and the last among them. */
  readonly marks: number
  readonly live: readonly (readonly [event: number, bytes: number])[]
  readonly growers: readonly { readonly stack: readonly Frame[]; readonly gained: number }[]
}

/** Checks a recording against limits. */
export async function budget(path: string, limits: Limits, options: InquiryOptions = {}): Promise<Budget> {
  const [mark, ...otherMarks] = Object.keys(limits.growth ?? {})
  const first = (await ask(path, { ...options, ...(mark === undefined ? {} : { mark }) })) as Answer & { growth?: Growth }
  const { why } = first
  const verdicts: Verdict[] = []
  if (limits.peak !== undefined) {
    const peak = await inquire(path, { ...options, at: 'peak' })
    verdicts.push(verdict('peak', peak.why.totals.held, limits.peak, largest(peak.why.sites)))
  }
  if (limits.held !== undefined) verdicts.push(verdict('held', why.totals.held, limits.held, largest(why.sites)))
  if (limits.pinned !== undefined) {
    const percent = why.totals.held === 0 ? 0 : (100 * why.pinned.bytes) / why.totals.held
    const [finding] = why.findings.filter(({ rule, site }) => rule === 'pinned' && site !== null)
    verdicts.push(verdict('pinned', percent, limits.pinned, finding ? why.sites[finding.site!]!.stack : largest(why.sites)))
  }
  for (const name of mark === undefined ? [] : [mark, ...otherMarks]) {
    const answer = name === mark ? first : ((await ask(path, { ...options, mark: name })) as { growth?: Growth })
    verdicts.push(growing(name, answer.growth, limits.growth![name]!))
  }
  const broken = verdicts.some((one) => one.broken)
  const verified = isVerified(why)
  const { arenas, held } = why.totals
  const arenaSize = arenas === 0 ? 0 : held / arenas
  return { schema: 'obmalloc.budget/1', path, at: why.at, arenas, arenaSize, verdicts, broken, verified }
}

function verdict(limit: 'peak' | 'held' | 'pinned', measured: number, allowed: number, stack: readonly Frame[]): Verdict {
  return { limit, measured, allowed, broken: measured > allowed, stack }
}

/** The site whose share of the arenas is largest, of those that have a stack. */
function largest(sites: readonly Site[]): readonly Frame[] {
  const known = sites.filter(({ stack }) => stack.length > 0)
  return known.reduce<Site | undefined>((most, site) => (most && most.held >= site.held ? most : site), undefined)?.stack ?? []
}

/**
 * The mean growth of live bytes from mark to mark. If there are three marks or more, the first step is left out, because setup for the first
 * use is no leak.
 */
function growing(name: string, growth: Growth | undefined, allowed: number): Verdict {
  const live = (growth?.live ?? []).map(([, bytes]) => bytes)
  if (live.length < 2)
    throw new UsageError(`expected two marks or more called ${JSON.stringify(name)}, but the trace has ${live.length}`)
  // How many marks a step spans: one, unless there are very many marks.
  const stride = (growth!.marks - 1) / (live.length - 1)
  const steps = live.length > 2 ? live.slice(1) : live
  const measured = Math.max(0, (steps.at(-1)! - steps[0]!) / ((steps.length - 1) * stride))
  const stack = growth!.growers.find((grower) => grower.stack.length > 0)?.stack ?? []
  return { limit: 'growth', mark: name, measured, allowed, broken: measured > 0 && measured >= allowed, stack }
}

/** The measured values as limits, each with `tolerance` percent added, and with `room` at least. */
export function limitsOf({ verdicts }: Budget, tolerance: number, room: (verdict: Verdict) => number = () => 0): Limits {
  const growth: Record<string, number> = {}
  const limits: Record<string, number> = {}
  for (const verdict of verdicts) {
    const { limit, mark, measured } = verdict
    const allowed = Math.ceil(Math.max(measured * (1 + tolerance / 100), measured + room(verdict)))
    // Growth that equals its limit breaks it.
    if (mark !== undefined) growth[mark] = allowed + 1
    else limits[limit] = limit === 'pinned' ? Math.min(allowed, 100) : allowed
  }
  return { ...limits, ...(Object.keys(growth).length === 0 ? {} : { growth }) }
}

/** Live memory may differ by so many bytes a mark from run to run. `why` does not call less than that growth. */
const NOISE_OF_GROWTH = 64

/** By how much two recordings of one program may differ: by an arena. */
export function noiseOf({ arenas, arenaSize }: Budget): (verdict: Verdict) => number {
  return ({ limit }) => (limit === 'growth' ? NOISE_OF_GROWTH : limit === 'pinned' ? 100 / Math.max(arenas, 1) : arenaSize)
}
