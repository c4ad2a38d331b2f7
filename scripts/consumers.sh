#!/usr/bin/env bash
# Installs the packed packages into an empty project, and uses them there as others do: from webpack, Vite and esbuild, and from tests of vitest and
# jest. Run it after a build. It asks the registry for those tools, and takes minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
export NO_COLOR=1
platform=$(node -p "require('./dist/platform.js').platform")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm pack --silent --ignore-scripts --pack-destination "$folder" . "./npm/$platform" >/dev/null
cd "$folder"
echo '{ "private": true }' >package.json
npm install --silent --no-audit --no-fund ./*.tgz
npm install --silent --no-audit --no-fund --ignore-scripts webpack webpack-cli vite esbuild vitest jest

status=0
# step NAME EXPECTED COMMAND…: the command's output must have a line that is this.
step() {
  local name=$1 expected=$2 said
  shift 2
  said=$("$@" 2>&1) || true
  if grep -qxF "$expected" <<<"$said"; then
    echo "$name: works"
  else
    echo "$name: expected the line \"$expected\", got:"
    echo "$said" | tail -n 20 | cut -c1-400
    status=1
  fi
}

cat >program.mjs <<'JS'
import { Heap } from 'obmalloc'
const heap = new Heap({ release: '3.13' })
heap.obj.malloc(64)
console.log(`blocks ${heap.allocatedBlocks()}`)
JS
step 'Node.js' 'blocks 1' node program.mjs

# For Node.js: the package is left where it is, as addons are.
npx esbuild program.mjs --bundle --platform=node --format=esm --external:obmalloc --outfile=by-esbuild.mjs --log-level=error
step esbuild 'blocks 1' node by-esbuild.mjs
cat >webpack.config.cjs <<'JS'
const output = { path: `${__dirname}/by-webpack`, filename: 'main.cjs' }
module.exports = { mode: 'production', entry: './program.mjs', target: 'node', externals: { obmalloc: 'commonjs obmalloc' }, output }
JS
npx webpack >webpack.log 2>&1 || cat webpack.log
rm webpack.config.cjs
step webpack 'blocks 1' node by-webpack/main.cjs
cat >vite.config.mjs <<'JS'
export default { build: { ssr: 'program.mjs', outDir: 'by-vite', minify: false, rollupOptions: { output: { entryFileNames: 'program.mjs' } } }, logLevel: 'error' }
JS
npx vite build >vite.log 2>&1 || cat vite.log
step Vite 'blocks 1' node by-vite/program.mjs

# For a browser: the bundle carries the module in WebAssembly.
cat >index.html <<'HTML'
<!doctype html><script type="module" src="/program.mjs"></script>
HTML
echo "export default { build: { outDir: 'by-vite-web', target: 'es2022', assetsInlineLimit: 0 }, logLevel: 'error' }" >vite.config.mjs
has_wasm() { ls -R "$1" | grep -c '\.wasm$' | sed 's/^/modules /'; }
npx vite build >vite.log 2>&1 || cat vite.log
step 'Vite, for browsers' 'modules 1' has_wasm by-vite-web
npx webpack --mode production --entry ./program.mjs --target web --output-path "$folder/by-webpack-web" >webpack.log 2>&1 || cat webpack.log
step 'webpack, for browsers' 'modules 1' has_wasm by-webpack-web
rm vite.config.mjs

cat >heap.test.mjs <<'JS'
import { expect, test } from 'vitest'
import { Heap, MemoryFault } from 'obmalloc'
test('a heap', () => {
  const heap = new Heap()
  expect(() => heap.mem.free(heap.obj.malloc(8))).toThrow(MemoryFault)
  console.log('vitest has run')
})
JS
step vitest 'vitest has run' npx vitest run --root "$folder" heap.test.mjs
cat >heap.test.cjs <<'JS'
const { writeFileSync } = require('node:fs')
const { Heap, MemoryFault } = require('obmalloc')
test('a heap', () => {
  const heap = new Heap()
  expect(() => heap.mem.free(heap.obj.malloc(8))).toThrow(MemoryFault)
  writeFileSync('jest.txt', 'jest has run\n')
})
JS
npx jest --testMatch '**/heap.test.cjs' >jest.log 2>&1 || cat jest.log
step jest 'jest has run' cat jest.txt
cd "$root"
exit "$status"
