/** Builds the page without data, `dist/viewer.html`: one file, with its styles and its script in it. */

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { build } from 'vite'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const viewer = join(root, 'src', 'viewer')

/** Most bytes of the page without data. */
const MOST = 150_000

const { output } = await build({
  root: viewer,
  configFile: false,
  logLevel: 'warn',
  build: {
    write: false,
    target: 'es2022',
    cssCodeSplit: false,
    modulePreload: false,
    rollupOptions: { input: join(viewer, 'main.ts'), output: { format: 'iife' } },
  },
})
/** What was built under a name that ends so. */
function built(end) {
  const found = output.find(({ fileName }) => fileName.endsWith(end))
  return (found.code ?? found.source).toString().trim()
}
// A script ends at its end tag, wherever that stands.
const script = built('.js').replaceAll('</script', '<\\/script')
const page = readFileSync(join(viewer, 'page.html'), 'utf8')
  .replace('<!-- style -->', () => `<style>${built('.css')}</style>`)
  .replace('<!-- script -->', () => `<script>${script}</script>`)
if (page.length > MOST) throw new Error(`expected a page of at most ${MOST} bytes, but it has ${page.length}`)
mkdirSync(join(root, 'dist'), { recursive: true })
writeFileSync(join(root, 'dist', 'viewer.html'), page)
