/** Sizes: as people read them, and as they write them. */

import { UsageError } from './usage.js'

/** A size as people read it: `142 MiB`, `1.9 MiB`, `131 KiB`, `96 B`. */
export function bytes(size: number): string {
  for (const [unit, factor] of [
    ['GiB', 2 ** 30],
    ['MiB', 2 ** 20],
    ['KiB', 2 ** 10],
  ] as const)
    if (size >= factor) return `${(size / factor).toFixed(size / factor < 9.95 ? 1 : 0)} ${unit}`
  return `${size} B`
}

/** A size as 262144, 256K, 1M or 1G. */
export function sizeOf(text: string): number {
  const found = /^(\d+)\s*([KMG])?(?:i?B)?$/i.exec(text)
  const size = found ? Number(found[1]) * 1024 ** ' KMG'.indexOf((found[2] ?? ' ').toUpperCase()) : NaN
  if (!Number.isSafeInteger(size)) throw new UsageError(`expected a size like 262144, 256K or 1M, but got ${text}`)
  return size
}
