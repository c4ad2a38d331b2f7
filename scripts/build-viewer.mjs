/** Builds the page without data, `dist/viewer.html`: one file, with its styles and its script in it. */

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { build } from 'esbuild'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const viewer = join(root, 'src', 'viewer')

/** Most bytes of the page without data. */
const MOST = 150_000

const { outputFiles } = await build({
  entryPoints: [join(viewer, 'main.ts'), join(viewer, 'page.css')],
  outdir: 'nowhere',
  bundle: true,
  minify: true,
  write: false,
  format: 'iife',
  target: 'es2022',
  legalComments: 'none',
})
const built = (name) => outputFiles.find(({ path }) => path.endsWith(name)).text.trim()
// A script ends at its end tag, wherever that stands.
const script = built('main.js').replaceAll('</script', '<\\/script')
const page = readFileSync(join(viewer, 'page.html'), 'utf8')
  .replace('<!-- style -->', () => `<style>${built('page.css')}</style>`)
  .replace('<!-- script -->', () => `<script>${script}</script>`)
if (page.length > MOST) throw new Error(`expected a page of at most ${MOST} bytes, but it has ${page.length}`)
mkdirSync(join(root, 'dist'), { recursive: true })
writeFileSync(join(root, 'dist', 'viewer.html'), page)
