/** Budgets: limits on what a recorded program may take, for a gate in CI. */

import { UsageError } from './usage.js'
import { ask, type Answer, type Frame, inquire, type InquiryOptions, isVerified, type Site } from './why.js'

/** What may be taken at most; sizes in bytes. What is not given is not looked at. */
export interface Limits {
  /** Bytes of arenas, at the peak. */
  readonly peak?: number
  /** Bytes of arenas, at the moment. */
  readonly held?: number
  /** Percent of what is held at the moment that is pinned: held, and not needed if the same blocks lay packed. */
  readonly pinned?: number
  /** Bytes by which what is live may not grow from mark to mark, by the marks' name: so much is already too much. */
  readonly growth?: Readonly<Record<string, number>>
}

/** A limit, and what was measured. */
export interface Verdict {
  readonly limit: 'peak' | 'held' | 'pinned' | 'growth'
  /** Of growth: the marks' name. */
  readonly mark?: string
  /** Bytes, or percent. */
  readonly measured: number
  readonly allowed: number
  readonly broken: boolean
  /** Who takes most of it: a stack, innermost frame first; empty where that is not known. */
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
  /** Whether every address that was replayed is as recorded. */
  readonly verified: boolean
}

interface Growth {
  readonly mark: string
  /** How many there are; of very many, `live` has some, the first and the last among them. */
  readonly marks: number
  readonly live: readonly (readonly [event: number, bytes: number])[]
  readonly growers: readonly { readonly stack: readonly Frame[]; readonly gained: number }[]
}

/** Holds a recording against limits. */
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
 * How much more was live from mark to mark, on the mean. What is set up for the first use is no leak: where there are three marks or more, the
 * first step is left out.
 */
function growing(name: string, growth: Growth | undefined, allowed: number): Verdict {
  const live = (growth?.live ?? []).map(([, bytes]) => bytes)
  if (live.length < 2)
    throw new UsageError(`expected two marks or more called ${JSON.stringify(name)}, but the trace has ${live.length}`)
  // Marks to a step, which is one unless there are very many.
  const stride = (growth!.marks - 1) / (live.length - 1)
  const steps = live.length > 2 ? live.slice(1) : live
  const measured = Math.max(0, (steps.at(-1)! - steps[0]!) / ((steps.length - 1) * stride))
  const stack = growth!.growers.find((grower) => grower.stack.length > 0)?.stack ?? []
  return { limit: 'growth', mark: name, measured, allowed, broken: measured > 0 && measured >= allowed, stack }
}

/** What was measured as limits, each with so many percent more, and with `room` for that much more at least. */
export function limitsOf({ verdicts }: Budget, tolerance: number, room: (verdict: Verdict) => number = () => 0): Limits {
  const growth: Record<string, number> = {}
  const limits: Record<string, number> = {}
  for (const verdict of verdicts) {
    const { limit, mark, measured } = verdict
    const allowed = Math.ceil(Math.max(measured * (1 + tolerance / 100), measured + room(verdict)))
    // A growth of as much as its limit is too much.
    if (mark !== undefined) growth[mark] = allowed + 1
    else limits[limit] = limit === 'pinned' ? Math.min(allowed, 100) : allowed
  }
  return { ...limits, ...(Object.keys(growth).length === 0 ? {} : { growth }) }
}

/** Bytes a mark by which what is live may differ from run to run. `why` calls less than that no growth. */
const NOISE_OF_GROWTH = 64

/** By how much two recordings of one program may differ: by an arena. */
export function noiseOf({ arenas, arenaSize }: Budget): (verdict: Verdict) => number {
  return ({ limit }) => (limit === 'growth' ? NOISE_OF_GROWTH : limit === 'pinned' ? 100 / Math.max(arenas, 1) : arenaSize)
}
