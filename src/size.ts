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
