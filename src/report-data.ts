/** `obmalloc.report/1`: the data of the page, between the native analysis, `report` and the page. Types only. */

/** A column of numbers: base64 of a little-endian array. */
export type Column = { readonly u8: string } | { readonly u16: string } | { readonly u32: string } | { readonly f64: string }

/** How much of something is in the data. */
export interface Bounded {
  readonly shown: number
  readonly of: number
}

export interface Frame {
  readonly file: string
  readonly line: number
  readonly function: string
}

/** A stack that asked for memory, and what it has live. Sizes in bytes. */
export interface Site {
  /** Innermost frame first; empty for C code without a Python frame. */
  readonly stack: readonly Frame[]
  /** Live blocks in pools, and their bytes at the size class's size. */
  readonly blocks: number
  readonly live: number
  /** Its share of the arenas: each divided among the sites of its live blocks by their number. The shares sum to what is held. */
  readonly held: number
  readonly arenasTouched: number
  /** Arenas in which no other site has a block. */
  readonly arenasPinnedAlone: number
  /** Event numbers; null where it has no block in pools. */
  readonly bornFirst: number | null
  readonly bornLast: number | null
  /** Live at C's `malloc`: on the raw domain, and above 512 bytes on mem and obj. */
  readonly raw: number
  readonly large: number
}

export interface Arena {
  readonly address: string
  /** Pools in use. */
  readonly pools: number
  readonly freePools: number
  readonly blocks: number
  readonly live: number
  /** The event at which it was taken. */
  readonly born: number
  /** Sites, by index, with most blocks first. */
  readonly pinnedBy: readonly { readonly site: number; readonly blocks: number }[]
}

export interface Finding {
  readonly rule: string
  readonly text: string
  readonly site: number | null
  /** 0 where it is not known. */
  readonly saves: number
  readonly command: string
  /** All sites that it is about, and those of the blocks that lay around theirs. */
  readonly sites: readonly number[]
  readonly burst: readonly number[]
}

/** `held = live + freeInPools + freePools + rounding`, in bytes. */
export interface Totals {
  readonly arenas: number
  readonly held: number
  /** What the same blocks would take if they lay packed. */
  readonly needed: number
  readonly live: number
  readonly blocks: number
  readonly freeInPools: number
  readonly freePools: number
  readonly rounding: number
  readonly raw: number
  readonly large: number
  /** Whole pages of empty pools. */
  readonly trimmable: number
  /** Null where it was not sampled. */
  readonly resident: number | null
  readonly unexplained: number | null
}

export interface Mark {
  readonly name: string
  readonly event: number
  readonly seconds: number | null
}

/** The answer: `obmalloc.why/1`, which `schema/why-1.json` describes. */
export interface Why {
  readonly schema: 'obmalloc.why/1'
  readonly trace: {
    readonly path: string
    readonly python: string
    readonly release: string
    readonly events: number
    readonly seconds: number | null
    readonly complete: boolean
    readonly marks: readonly Mark[]
  }
  /** Addresses that were compared on the way to the moment, and those of them that are equal. */
  readonly verified: { readonly addresses: number; readonly matched: number }
  readonly at: { readonly event: number; readonly seconds: number | null; readonly moment: string }
  readonly totals: Totals
  readonly pinned: { readonly arenas: number; readonly bytes: number; readonly blocks: number }
  readonly sites: readonly Site[]
  readonly arenas: readonly Arena[]
  /** How many sites and arenas are here, of how many. */
  readonly bounded: { readonly sites: readonly [number, number]; readonly arenas: readonly [number, number] }
  /** So many blocks must go for so many arenas, fewest first. */
  readonly greedy: readonly (readonly [number, number])[]
  readonly findings: readonly Finding[]
}

export interface WhatIfRow {
  readonly name: string
  readonly peakHeld: number | null
  readonly held: number | null
  readonly difference: number | null
  readonly lost: number | null
  readonly maps: number | null
  readonly unmaps: number | null
  readonly nanoseconds: number | null
  readonly kind: 'exact' | 'model' | 'measured'
  readonly setting: string | null
}

/** What grew from one moment to another. */
export interface Difference {
  readonly schema: 'obmalloc.diff/1'
  readonly a: { readonly path: string; readonly totals: Totals }
  readonly b: { readonly path: string; readonly totals: Totals }
  readonly sites: readonly DifferentSite[]
}

/** A site in both; null where one has it not. */
export interface DifferentSite {
  readonly stack: readonly Frame[]
  readonly a: Figures | null
  readonly b: Figures | null
}

export interface Figures {
  readonly blocks: number
  readonly live: number
  readonly held: number
}

export interface ReportData {
  readonly schema: 'obmalloc.report/1'
  readonly why: Why
  /** The answer in words, a line each. */
  readonly summary: readonly string[]
  /** Lines of source that frames name, by file and line; empty with `--sources none`. */
  readonly sources: Readonly<Record<string, Readonly<Record<string, string>>>>
  readonly timeline: Bounded & {
    readonly seconds: Column
    readonly event: Column
    readonly held: Column
    readonly live: Column
    readonly raw: Column
    readonly large: Column
    /** NaN where it was not sampled. */
    readonly resident: Column
  }
  readonly arenaEvents: Bounded & {
    readonly event: Column
    readonly seconds: Column
    readonly address: Column
    readonly taken: Column
  }
  readonly frames: readonly Frame[]
  /** A tree, outermost first; node 0 is "(no Python frame)"; 0xffffffff is the parent of a root. Values are a node's own. */
  readonly stacks: Bounded & {
    readonly parent: Column
    readonly frame: Column
    readonly held: Column
    readonly live: Column
    readonly peak: Column
    readonly allocated: Column
    readonly temporary: Column
    readonly blocks: Column
  }
  readonly map: {
    readonly poolSize: number
    readonly poolsPerArena: number
    /** In the order of `why.arenas`. */
    readonly arenas: Column
    /** Each pool's size class; 255 a free pool, 254 a place that alignment takes. */
    readonly class: Column
    readonly fill: Column
    /** Who has most blocks there; 65535 none or another. */
    readonly site: Column
    /** Of its youngest block, by events: 0 the recording's beginning, 255 its end. */
    readonly born: Column
    readonly blocks:
      | (Bounded & { readonly pool: Column; readonly index: Column; readonly site: Column; readonly born: Column })
      | null
  }
  /** Frames of `slots` bytes each, one arena a byte: its live share, 0 where there is none. */
  readonly play: Bounded & { readonly seconds: Column; readonly event: Column; readonly arenas: Column; readonly fill: Column }
  readonly slots: number
  readonly classes: readonly {
    readonly size: number
    readonly pools: number
    readonly blocks: number
    readonly live: number
    readonly free: number
  }[]
  readonly ages: { readonly edges: readonly number[]; readonly blocks: readonly number[]; readonly bytes: readonly number[] }
  readonly whatIf: readonly WhatIfRow[]
  readonly diff: Difference | null
  readonly sure: {
    readonly addresses: number
    readonly matched: number
    readonly notRecorded: readonly string[]
    readonly python: string
    readonly release: string
    readonly command: readonly string[]
    /** Most frames kept of a stack; 0 where stacks were off. */
    readonly stacks: number
    readonly version: string
  }
}
