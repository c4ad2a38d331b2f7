/** Plays every row in a worker, which does not inherit what compiles TypeScript. */

import { register } from 'tsx/esm/api'

register()
await import('./play.ts')
