/** The binding of browsers, in place of `src/loading.ts`: the one in WebAssembly, which lies beside the bundle. */

import { createContext } from '@emnapi/runtime'
import { instantiateNapiModuleSync } from '@emnapi/core'

import { type Emnapi, instantiate } from '../wasm.js'

const place = new URL('./obmalloc.wasm', import.meta.url)
const answer = await fetch(place)
if (!answer.ok) throw new Error(`expected ${place} beside the script, got ${answer.status}`)
const bytes = new Uint8Array(await answer.arrayBuffer())
const emnapi = { createContext, instantiateNapiModuleSync } as unknown as Emnapi
const module = instantiate(bytes, emnapi, () => new Error('expected Node.js, which reads traces, but this is a browser'))

export const load = () => ({ module, fallback: 'a browser' })
