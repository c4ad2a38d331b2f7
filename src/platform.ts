import process from 'node:process'

/** What the platform's package is called after, as napi-rs names it. */
export const platform = `${process.platform}-${process.arch}${process.platform === 'linux' ? '-gnu' : ''}`

/** The platforms that there are packages for. */
export const PLATFORMS: readonly string[] = ['linux-x64-gnu']
