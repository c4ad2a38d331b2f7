/** Numbers as people read them. */

import type { Frame } from '../report-data.ts'

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB']

/** 148897792 is `142 MiB`. */
export function bytes(size: number): string {
  let [value, unit] = [Math.abs(size), 0]
  while (value >= 1023.5 && unit < UNITS.length - 1) {
    value /= 1024
    unit++
  }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2
  return `${size < 0 ? '−' : ''}${value.toFixed(digits).replace(/\.0+$/, '')} ${UNITS[unit]}`
}

/** With a sign: what was gained or lost. */
export const change = (size: number): string => (size > 0 ? `+${bytes(size)}` : bytes(size))

/** 1234567 is `1 234 567`. */
export const count = (value: number): string =>
  Math.round(value)
    .toString()
    .replaceAll(/\B(?=(\d{3})+$)/g, '\u202f')

export const percent = (part: number): string =>
  part > 0 && part < 0.0005 ? '< 0.1 %' : `${(100 * part).toFixed(part !== 0 && Math.abs(part) < 0.1 ? 1 : 0)} %`

export const seconds = (value: number): string =>
  value >= 100 ? `${Math.round(value)} s` : value >= 1 ? `${value.toFixed(2)} s` : `${Math.round(value * 1000)} ms`

export const plural = (value: number, one: string, many = `${one}s`): string => `${count(value)} ${value === 1 ? one : many}`

/** The end of a path, where that is enough to know it. */
export function short(file: string): string {
  const parts = file.split('/')
  return parts.length > 3 ? `…/${parts.slice(-2).join('/')}` : file
}

export const place = ({ file, line }: Frame): string => (file === '' ? '' : `${short(file)}:${line}`)

export const named = (frame: Frame | undefined): string =>
  frame === undefined ? '(no Python frame)' : frame.file === '' ? frame.function : `${frame.function} (${place(frame)})`
