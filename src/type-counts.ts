/** The types of a site's blocks, in words. */

import type { Site, TypeCount } from './report-data.js'

/** A type's name without the module of a program's own. A control character in it is shown as `?`: a terminal would obey it. */
export function typeName({ name }: TypeCount): string {
  return name.replace(/^__main__\./, '').replaceAll(/\p{Cc}/gu, '?')
}

/**
 * The types of a site's live blocks, with a count each: `1 000 Row, 2 int, 3 others, 4 unknown`. Empty where the site has none, or the
 * recorder did not look.
 */
export function typesOf(
  { types, blocks }: Pick<Site, 'types' | 'blocks'>,
  most: number,
  shown: (count: number) => string,
): string {
  if (types === undefined || blocks === 0) return ''
  const rest = types.slice(most).reduce((sum, type) => sum + type.blocks, 0)
  const unknown = types.reduce((left, type) => left - type.blocks, blocks)
  const parts = types.slice(0, most).map((type) => `${shown(type.blocks)} ${typeName(type)}`)
  if (rest > 0) parts.push(`${shown(rest)} ${rest === 1 ? 'other' : 'others'}`)
  if (unknown > 0) parts.push(`${shown(unknown)} unknown`)
  return parts.join(', ')
}
