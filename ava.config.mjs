/** How `ava` runs the tests. */

/** The longest ones first, so that none of them is left to run alone. Times are those of processors, in seconds, on one machine. */
const SECONDS = {
  why: 120,
  workers: 45,
  proof: 40,
  gate: 40,
  check: 35,
  cli: 30,
  places: 30,
  pollution: 20,
  report: 20,
  tracing: 20,
  'gc-proof': 20,
}

const seconds = (path) => SECONDS[/([^/]+)\.spec\.ts$/.exec(path)?.[1]] ?? 0

export default {
  extensions: { ts: 'module' },
  files: ['__test__/**/*.spec.ts'],
  nodeArguments: ['--import', 'tsx'],
  sortTestFiles: (one, other) => seconds(other) - seconds(one),
  timeout: '5m',
  workerThreads: false,
}
