/** What a person sees: progress for what takes a while, tables, a little colour where it is wanted. */

const colour = process.env['NO_COLOR'] === undefined || process.env['NO_COLOR'] === ''

/** Bold, green or red on a terminal; plain elsewhere. */
export function paint(style: 'bold' | 'green' | 'red', text: string, stream: NodeJS.WriteStream): string {
  const code = { bold: 1, green: 32, red: 31 }[style]
  return colour && stream.isTTY ? `\u001b[${code}m${text}\u001b[0m` : text
}

/** A line on stderr that says what is being done. On a terminal it is rewritten in place, and only after a second. */
export class Progress {
  readonly #started = Date.now()
  #shown = false
  #last = 0

  update(text: string): void {
    const now = Date.now()
    if (!process.stderr.isTTY || now - this.#started < 1000 || now - this.#last < 100) return
    this.#last = now
    this.#shown = true
    process.stderr.write(`\r\u001b[K${text}`)
  }

  /** Takes the line away. */
  done(): void {
    if (this.#shown) process.stderr.write('\r\u001b[K')
    this.#shown = false
  }
}

/** Lines in columns, the first one left-aligned, the others right-aligned. */
export function columns(rows: readonly (readonly string[])[]): string[] {
  const widths = rows.reduce<number[]>((most, row) => row.map((cell, index) => Math.max(cell.length, most[index] ?? 0)), [])
  return rows.map((row) =>
    row
      .map((cell, index) => (index === 0 ? cell.padEnd(widths[index]!) : cell.padStart(widths[index]!)))
      .join('  ')
      .trimEnd(),
  )
}

/** A count with thin groups: 1234567 is `1 234 567`. */
export function grouped(count: number): string {
  return count.toString().replaceAll(/\B(?=(\d{3})+$)/g, ' ')
}

/** A message on stderr. */
export function say(text: string): void {
  process.stderr.write(`${text}\n`)
}
