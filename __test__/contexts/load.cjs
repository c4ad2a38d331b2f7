/** Loads the package as a module registry does that runs everything in a context of its own (as jest's). */

const { readFileSync } = require('node:fs')
const { createRequire } = require('node:module')
const { dirname, join } = require('node:path')
const { compileFunction } = require('node:vm')

const main = join(__dirname, '../../dist/index.js')

/** The package in a context, or in this one: its own files compiled anew, and the addon loaded once more. */
function load(parsingContext) {
  const modules = new Map()
  const get = (file) => {
    const known = modules.get(file)
    if (known) return known.exports
    const module = { exports: {} }
    modules.set(file, module)
    if (file.endsWith('.node')) {
      delete require.cache[file]
      return (module.exports = require(file))
    }
    const outside = createRequire(file)
    const inside = (id) => (id.startsWith('.') ? get(outside.resolve(id)) : outside(id))
    const names = ['exports', 'require', 'module', '__filename', '__dirname']
    const run = compileFunction(readFileSync(file, 'utf8'), names, { filename: file, parsingContext })
    run(module.exports, inside, module, file, dirname(file))
    return module.exports
  }
  return get(main)
}

module.exports = { load }
