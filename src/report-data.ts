/** `obmalloc.report/1`: the data of the page, between the native analysis, `report` and the page. Types only. */

import type { Frame, Totals, Why } from '../index.js'

export type { Frame, Site, Arena, Finding, Totals, TypeCount, Why } from '../index.js'

/** A column of numbers: base64 of a little-endian array. */
export type Column = { readonly u8: string } | { readonly u16: string } | { readonly u32: string } | { readonly f64: string }

/** How much of something is in the data. */
export interface Bounded {
  readonly shown: number
  readonly of: number
}

export interface Mark {
  readonly name: string
  readonly event: number
  readonly seconds: number | null
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
    /** The site with most blocks there; 65535 for none or another. */
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
