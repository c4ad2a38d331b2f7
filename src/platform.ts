/** Which platform this is, and which package there is for it. */

import { Buffer } from 'node:buffer'
import { closeSync, openSync, readSync } from 'node:fs'
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

/** The program that loads a 64-bit executable and its libraries, as the executable names it; null if it names none. */
function interpreterOf(executable: string): string | null {
  const file = openSync(executable, 'r')
  try {
    const read = (at: number, size: number) => {
      const bytes = Buffer.alloc(size)
      return bytes.subarray(0, readSync(file, bytes, 0, size, at))
    }
    // Offsets are those of ELF's Elf64_Ehdr and Elf64_Phdr.
    const [header, PT_INTERP] = [read(0, 64), 3]
    const [begin, size, count] = [Number(header.readBigUInt64LE(32)), header.readUInt16LE(54), header.readUInt16LE(56)]
    for (let index = 0; index < count; index++) {
      const entry = read(begin + index * size, size)
      if (entry.readUInt32LE(0) === PT_INTERP)
        return read(Number(entry.readBigUInt64LE(8)), Number(entry.readBigUInt64LE(32))).toString('latin1')
    }
    return null
  } finally {
    closeSync(file)
  }
}

/**
 * The C library that an executable on Linux uses, which need not be the system's: `-musl`, or `-gnu` if it cannot be told. An executable that
 * names no loader is itself a loader, started with a program as its argument.
 */
export function libcOf(executable: string): '-gnu' | '-musl' {
  try {
    return (interpreterOf(executable) ?? executable).includes('musl') ? '-musl' : '-gnu'
  } catch {
    return '-gnu'
  }
}

/** What a platform's package is called after, as napi-rs names it. */
function named(system: string, processor: string): string {
  const variant = system === 'linux' ? libcOf(process.execPath) : system === 'win32' ? '-msvc' : ''
  return `${system}-${processor}${variant}`
}

export const platform = named(process.platform, process.arch)

/** The oldest glibc that the packages for it can be loaded with. `scripts/release-check.mjs --built` reads what they ask for. */
export const GLIBC = '2.34'

/** What to do where the platform's package is missing, or cannot be loaded. */
export function advice(version: string): string {
  const needed = platform.endsWith('-gnu') ? `; it needs glibc ${GLIBC} or later` : ''
  return PLATFORMS.includes(platform)
    ? `install obmalloc-${platform}@${version}, which npm leaves out with --omit=optional${needed}`
    : `there are packages for ${PLATFORMS.join(', ')}; for another platform, build obmalloc from its source, which needs Rust`
}

/** A platform on which something is not to be had. */
export class PlatformError extends Error {
  override readonly name = 'PlatformError'
  readonly code = 'ERR_UNSUPPORTED_PLATFORM'
}

/**
 * Throws unless real CPythons can be recorded, checked, trimmed and driven here. That needs the preloaded library, which is for Linux with glibc.
 */
export function needLinux(): void {
  if (/^linux-.*-gnu$/.test(platform)) return
  throw new PlatformError(
    `expected Linux with glibc, on which CPythons can be recorded, checked and trimmed, got ${platform}: record there, and read the trace here`,
  )
}
