/** The same contract for ES modules: they get the very objects of the CommonJS one. */

export * from './index.js'
