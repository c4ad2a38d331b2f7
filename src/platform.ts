/** Which platform this is, and what there is for it. */

import { readFileSync } from 'node:fs'
import process from 'node:process'

/** The platforms that there are packages for. */
export const PLATFORMS: readonly string[] = [
  'linux-x64-gnu',
  'linux-x64-musl',
  'linux-arm64-gnu',
  'darwin-arm64',
  'darwin-x64',
  'win32-x64-msvc',
]

/** The C library of a Linux, as its `ldd` names it: the one with which almost every Linux comes, unless it is musl. */
function libc(): string {
  try {
    return readFileSync('/usr/bin/ldd', 'utf8').includes('musl') ? '-musl' : '-gnu'
  } catch {
    return '-gnu'
  }
}

/** What a platform's package is called after, as napi-rs names it. */
function named(system: string, processor: string): string {
  const variant = system === 'linux' ? libc() : system === 'win32' ? '-msvc' : ''
  return `${system}-${processor}${variant}`
}

export const platform = named(process.platform, process.arch)

/** What to do where the platform's package is missing. */
export function advice(version: string): string {
  return PLATFORMS.includes(platform)
    ? `install obmalloc-${platform}@${version}, which npm leaves out with --omit=optional`
    : `there are packages for ${PLATFORMS.join(', ')}; for another platform, build obmalloc from its source, which needs Rust`
}

/** A platform on which something is not to be had. */
export class PlatformError extends Error {
  override readonly name = 'PlatformError'
  readonly code = 'ERR_UNSUPPORTED_PLATFORM'
}

/**
 * Throws unless real CPythons can be recorded, checked, trimmed and driven here: that takes what is preloaded into them, which is for Linux with
 * glibc.
 */
export function needLinux(): void {
  if (/^linux-.*-gnu$/.test(platform)) return
  throw new PlatformError(
    `expected Linux with glibc, on which CPythons can be recorded, checked and trimmed, got ${platform}: record there, and read the trace here`,
  )
}
