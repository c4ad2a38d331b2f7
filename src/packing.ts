/**
 * How the page holds its data: gzip of the JSON's length (4 bytes), the JSON, and the columns' bytes. A column in there is
 * `{ u32: [offset, count, delta] }`. Its bytes are in planes, all lowest bytes first, which gzip makes much smaller than base64.
 */

import { gzipSync } from 'node:zlib'

const WIDTHS: Readonly<Record<string, number>> = { u8: 1, u16: 2, u32: 4, f64: 8 }

/** All of `data` as base64, so that it can be put into HTML. */
export function pack(data: object): string {
  const parts: Buffer[] = []
  let offset = 0
  const json = JSON.stringify(data, (_key, value: unknown) => {
    const [type, text, more] = value === null || typeof value !== 'object' ? [] : Object.entries(value).flat()
    const width = typeof type === 'string' ? WIDTHS[type] : undefined
    if (width === undefined || typeof text !== 'string' || more !== undefined) return value
    const bytes = Buffer.from(text, 'base64')
    if (bytes.length % width !== 0)
      throw new Error(`expected a column of ${type}, ${width} bytes each, but it has ${bytes.length} bytes`)
    const { stored, delta } = smaller(bytes, width)
    parts.push(stored)
    const place = offset
    offset += bytes.length
    return { [type as string]: [place, bytes.length / width, delta] }
  })
  const head = Buffer.from(json)
  const length = Buffer.alloc(4)
  length.writeUInt32LE(head.length)
  return gzipSync(Buffer.concat([length, head, ...parts]), { level: 6 }).toString('base64')
}

/** A column as it is or as differences from one value to the next, whichever is smaller when compressed. */
function smaller(bytes: Buffer, width: number): { stored: Buffer; delta: 0 | 1 } {
  const plain = planes(bytes, width)
  if (width === 8) return { stored: plain, delta: 0 }
  const differences = planes(differencesOf(bytes, width), width)
  const [one, other] = [plain, differences].map((stored) => gzipSync(stored, { level: 1 }).length) as [number, number]
  return other < one ? { stored: differences, delta: 1 } : { stored: plain, delta: 0 }
}

function planes(bytes: Buffer, width: number): Buffer {
  const stored = Buffer.alloc(bytes.length)
  let to = 0
  for (let plane = 0; plane < width; plane++)
    for (let from = plane; from < bytes.length; from += width) stored[to++] = bytes[from]!
  return stored
}

function differencesOf(bytes: Buffer, width: number): Buffer {
  const stored = Buffer.alloc(bytes.length)
  for (let at = 0, before = 0; at < bytes.length; at += width) {
    const value = bytes.readUIntLE(at, width)
    stored.writeUIntLE((value - before + 2 ** (8 * width)) % 2 ** (8 * width), at, width)
    before = value
  }
  return stored
}
