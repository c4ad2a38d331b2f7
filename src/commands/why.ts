/** `obmalloc why`: what holds the memory, in words. Ends with 1 when a finding says that something could be better, with 4 when not verified. */

import { emit, type Output } from '../output.js'
import { bytes } from '../size.js'
import { columns, commandOn, counted, grouped, next, paint, printable, Progress, quoted } from '../terminal.js'
import { readHeader } from '../trace.js'
import { isWorthTrying, tryOthers, withTried } from '../tried.js'
import { UsageError } from '../usage.js'
import { type Answer, type Arena, type Frame, inquire, isFault, isVerified, type Site, where, type Why } from '../why.js'
import { typesOf } from '../type-counts.js'

export interface WhyCommandOptions extends Output {
  readonly at?: string
  readonly top: number
  readonly site?: string
  readonly arena?: string
  readonly json?: boolean
}

export async function whyCommand(path: string, options: WhyCommandOptions): Promise<number> {
  const wantsSite = options.site === undefined ? undefined : siteFilter(options.site)
  const wantsArena = options.arena === undefined ? undefined : arenaFilter(options.arena)
  if (wantsSite && !readHeader(path).stacks) throw new UsageError(`expected a trace with stacks for a site, but ${path} has none`)
  const progress = new Progress()
  const told = (what: string, done: number, total: number): void =>
    progress.update(`${what}: ${Math.round((100 * done) / Math.max(total, 1))} %`)
  const answer = await (async () => {
    const found = await inquire(path, { at: options.at, onProgress: (done, total) => told(path, done, total) })
    if (!isWorthTrying(found.why) || options.json || wantsSite || wantsArena) return found
    return { ...found, summary: withTried(found, await tryOthers(path, found.why, told)) }
  })().finally(() => progress.done())
  const { why } = answer
  emit(options.json ? `${JSON.stringify(why)}\n` : inWords(answer, options, wantsSite, wantsArena), options)
  if (!isVerified(why)) return 4
  return why.findings.some(isFault) ? 1 : 0
}

function siteFilter(text: string): (site: Site) => boolean {
  const place = /^(.+):(\d{1,9})$/.exec(text)
  if (!place) throw new UsageError(`expected a site as FILE:LINE, but got ${text}`)
  const [file, line] = [place[1]!, Number(place[2])]
  const isThere = (frame: Frame): boolean => frame.line === line && (frame.file === file || frame.file.endsWith(`/${file}`))
  return (site) => site.stack.some(isThere)
}

function arenaFilter(text: string): (arena: Arena) => boolean {
  if (!/^0x[\da-f]{1,16}$/i.test(text)) throw new UsageError(`expected an arena's address like 0x7f0000100000, but got ${text}`)
  return (arena) => BigInt(arena.address) === BigInt(text)
}

function inWords(
  { why, summary }: Answer,
  { top, site }: WhyCommandOptions,
  wantsSite: ((site: Site) => boolean) | undefined,
  wantsArena: ((arena: Arena) => boolean) | undefined,
): string {
  const lines: string[] = []
  if (wantsArena) {
    const arenas = why.arenas.filter(wantsArena)
    if (arenas.length === 0) throw new UsageError('the trace holds no such arena at that moment')
    for (const arena of arenas) lines.push(...arenaInWords(arena, why, top))
  } else if (wantsSite) {
    const sites = why.sites.map((site, index) => ({ site, index })).filter(({ site }) => wantsSite(site))
    if (sites.length === 0) lines.push('Nothing that was made there is live at that moment.')
    for (const { site, index } of sites.slice(0, top)) lines.push(...siteInWords(site, index, why))
  } else {
    const [first = '', ...rest] = summary
    lines.push(paint('bold', first, process.stdout), ...rest, '')
    const all = (site: Site): number => site.held + site.raw + site.large
    const sites = why.sites.toSorted((a, b) => all(b) - all(a)).slice(0, top)
    lines.push(`The sites that hold most, of ${grouped(why.bounded.sites[1])}:`, ...table(sites))
  }
  const [path, moment] = [why.trace.path, why.at.moment]
  // Memory at C's malloc is no fault, but its site is worth a look.
  const finding = why.findings.find(isFault) ?? why.findings.find(({ rule }) => rule === 'large')
  const isHere = wantsSite && why.sites.some((found) => found.blocks > 0 && wantsSite(found))
  const command = isHere
    ? `${commandOn('what-if', path, moment)} --apart ${quoted(site!)}`
    : ((wantsSite ? undefined : finding?.command) ?? commandOn('top', path, moment))
  return `${[...lines, '', next(command)].join('\n')}\n`
}

const HEADINGS = ['site', 'held', 'live', 'blocks', 'arenas', 'alone', "C's malloc"]

/** Most types that a row of the table names. */
const TYPES_OF_ROW = 2
/** And one site in words. */
const TYPES_OF_SITE = 12

function table(sites: readonly Site[]): string[] {
  const rows = sites.map((site) => [
    where(site.stack),
    bytes(site.held),
    bytes(site.live),
    grouped(site.blocks),
    grouped(site.arenasTouched),
    grouped(site.arenasPinnedAlone),
    bytes(site.raw + site.large),
  ])
  // Numbers are aligned right; the words behind them, left.
  const words = sites.some(({ types }) => types !== undefined)
    ? ['types', ...sites.map((site) => typesOf(site, TYPES_OF_ROW, grouped))]
    : []
  return columns([HEADINGS, ...rows]).map((line, row) => `  ${line}  ${words[row] ?? ''}`.trimEnd())
}

function siteInWords(site: Site, index: number, why: Why): string[] {
  const alone = why.arenas.filter(({ pinnedBy }) => pinnedBy.length === 1 && pinnedBy[0]!.site === index)
  const types = typesOf(site, TYPES_OF_SITE, grouped)
  return [
    `${counted(site.blocks, 'block')}, ${bytes(site.live)} live, ${bytes(site.held)} held, in ${counted(site.arenasTouched, 'arena')}, alone in ${grouped(site.arenasPinnedAlone)}; ${bytes(site.raw + site.large)} at C's malloc`,
    ...(types === '' ? [] : [`  of types: ${types}`]),
    ...site.stack.map(({ file, line, function: name }) => printable(`    ${name} (${file}:${line})`)),
    ...(alone.length === 0
      ? []
      : [
          `  alone in ${alone
            .slice(0, 4)
            .map(({ address }) => address)
            .join(', ')}${alone.length > 4 ? ', …' : ''}`,
        ]),
  ]
}

function arenaInWords(arena: Arena, why: Why, top: number): string[] {
  const rows = arena.pinnedBy.slice(0, top).map(({ site, blocks }) => [where(why.sites[site]!.stack), grouped(blocks)])
  return [
    `arena ${arena.address}, taken at event ${grouped(arena.born)}: ${grouped(arena.blocks)} blocks (${bytes(arena.live)}) in ${arena.pools} pools, ${arena.freePools} pools free`,
    ...columns([['site', 'blocks'], ...rows]).map((line) => `  ${line}`),
  ]
}
