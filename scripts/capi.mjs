/** Writes compat/README.md from compat/capi.json; with `--check`, says whether it is what it would write. */

import { readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const folder = join(dirname(fileURLToPath(import.meta.url)), '..', 'compat')
const { sections } = JSON.parse(readFileSync(join(folder, 'capi.json'), 'utf8'))

const code = (name) => (name === null ? '' : `\`${name}\``)
const row = ({ c, typescript, rust, state, note }) =>
  `| ${[code(c), code(typescript), code(rust), state, note ?? ''].join(' | ')} |`

const text = `# C names, and where they are here

Made by \`node scripts/capi.mjs\` from [\`capi.json\`](capi.json), which also names the tests that prove each row.

- **exact**: does what the C function does, in that release, as far as it can be seen.
- **adapted**: the same thing in another form; the note says which.

${sections
  .map(({ title, rows }) =>
    [`## ${title}`, '', '| C | TypeScript | Rust | state | note |', '|---|---|---|---|---|', ...rows.map(row), ''].join('\n'),
  )
  .join('\n')}`

const file = join(folder, 'README.md')
if (!process.argv.includes('--check')) writeFileSync(file, text)
else if (readFileSync(file, 'utf8') !== text) {
  process.stderr.write('compat/README.md is not what node scripts/capi.mjs makes of compat/capi.json\n')
  process.exitCode = 1
}
