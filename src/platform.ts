/** Which platform this is, and what there is for it. */

import { readFileSync } from 'node:fs'
import process from 'node:process'

/** The platforms that there are packages for, by what Rust calls each. */
export const TARGETS: Readonly<Record<string, string>> = {
  'x86_64-unknown-linux-gnu': 'linux-x64-gnu',
  'x86_64-unknown-linux-musl': 'linux-x64-musl',
  'aarch64-unknown-linux-gnu': 'linux-arm64-gnu',
  'aarch64-apple-darwin': 'darwin-arm64',
  'x86_64-apple-darwin': 'darwin-x64',
  'x86_64-pc-windows-msvc': 'win32-x64-msvc',
}

export const PLATFORMS: readonly string[] = Object.values(TARGETS)

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
