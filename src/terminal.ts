/** Output for people: progress of long work, tables, a little colour if it is wanted. */

import process from 'node:process'

const colour = process.env['NO_COLOR'] === undefined || process.env['NO_COLOR'] === ''

/** Bold, green or red on a terminal; plain elsewhere. */
export function paint(style: 'bold' | 'green' | 'red', text: string, stream: NodeJS.WriteStream): string {
  const code = { bold: 1, green: 32, red: 31 }[style]
  return colour && stream.isTTY ? `\u001b[${code}m${text}\u001b[0m` : text
}

/**
 * A line on stderr that says what is being done. On a terminal it is rewritten in place, and appears only after a second. A timer shows it,
 * also while the work reports nothing new.
 */
export class Progress {
  readonly #stream: Pick<NodeJS.WriteStream, 'isTTY' | 'write'>
  readonly #started = Date.now()
  #timer: NodeJS.Timeout | undefined
  #text = ''
  #shown = ''

  constructor(stream: Pick<NodeJS.WriteStream, 'isTTY' | 'write'> = process.stderr) {
    this.#stream = stream
  }

  update(text: string): void {
    this.#text = text
    if (this.#stream.isTTY) this.#timer ??= setInterval(() => this.#show(), 100).unref()
  }

  #show(): void {
    if (Date.now() - this.#started < 1000 || this.#text === this.#shown) return
    this.#shown = this.#text
    this.#stream.write(`\r\u001b[K${this.#text}`)
  }

  /** Takes the line away. */
  done(): void {
    clearInterval(this.#timer)
    this.#timer = undefined
    if (this.#shown) this.#stream.write('\r\u001b[K')
    this.#shown = ''
  }
}

/** A text without line breaks and control characters: a file can have any name. */
export function printable(text: string): string {
  return text.replaceAll(/\p{Cc}/gu, '?')
}

/** Lines in columns, the first `left` of them left-aligned, the others right-aligned. */
export function columns(rows: readonly (readonly string[])[], left = 1): string[] {
  const widths = rows.reduce<number[]>((most, row) => row.map((cell, index) => Math.max(cell.length, most[index] ?? 0)), [])
  return rows.map((row) =>
    row
      .map((cell, index) => (index < left ? cell.padEnd(widths[index]!) : cell.padStart(widths[index]!)))
      .join('  ')
      .trimEnd(),
  )
}

/** A count with thin groups: 1234567 is `1 234 567`. */
export function grouped(count: number): string {
  return count.toString().replaceAll(/\B(?=(\d{3})+$)/g, ' ')
}

/** A count with what is counted: `1 arena`, `3 000 blocks`. */
export function counted(count: number, one: string, plural = 's'): string {
  return `${grouped(count)} ${one}${count === 1 ? '' : plural}`
}

/** Writes that the figures are from a replay that differed from the recording. */
export function sayUnverified(path: string): void {
  say(`${path} was not verified: its addresses differ from those of a replay (${commandOn('replay', path)})`)
}

/** A word of a command as a shell takes it, in quotes where it has to be; and as a command takes it, which would take `-` for an option. */
export function quoted(word: string): string {
  const safe = word.startsWith('-') ? `./${word}` : word
  return /^[\p{L}\p{N}_./+@%:,=-]+$/u.test(safe) ? safe : `'${safe.replaceAll("'", String.raw`'\''`)}'`
}

/** A command of ours that looks at a trace, at the moment that was looked at before. */
export function commandOn(command: string, path: string, at?: string): string {
  return `obmalloc ${command} ${quoted(path)}${at === undefined || at === 'end' ? '' : ` --at ${quoted(at)}`}`
}

/** The last line of an answer: what to do next, with a command of ours called as this one was. */
export function next(command: string): string {
  // A shell does not find the name that `npx` finds.
  const { npm_command: by, npm_lifecycle_script: script = '' } = process.env
  const isByNpx = by === 'exec' && /^["']?obmalloc\b/.test(script)
  return `next: ${isByNpx && command.startsWith('obmalloc ') ? 'npx ' : ''}${command}`
}

/** The command that opens a file or an address in a browser. */
export function opening(what: string): string {
  const openers: { readonly [platform: string]: string } = { darwin: 'open', win32: 'start ""' }
  return `${openers[process.platform] ?? 'xdg-open'} ${quoted(what)}`
}

/** A message on stderr. */
export function say(text: string): void {
  process.stderr.write(`${text}\n`)
}
