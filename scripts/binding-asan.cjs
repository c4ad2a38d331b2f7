/** Loaded first by every Node.js of scripts/asan.mjs: a request for the binding gets the instrumented one. */

const { _extensions: extensions } = require('node:module')

const load = extensions['.node']
extensions['.node'] = (module, filename) =>
  load(module, /\/obmalloc\.[^/]+\.node$/.test(filename) ? process.env.OBMALLOC_INSTRUMENTED : filename)
