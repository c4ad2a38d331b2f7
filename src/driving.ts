/** Runs the driver inside a CPython. */

import process from 'node:process'

import type { Interpreter } from './interpreters.js'
import { passingOn } from './signals.js'
import { Started } from './started.js'
import { driver } from './tools.js'

/** Nanoseconds a call in CPython and here, and the median of the rounds' ratios. */
export type Timing = readonly [cpython: number, here: number, ratio: number]

/** Loads the driver and prints what a function of it gives, as JSON. 3.8 cannot import it, but can call into it. */
const RUNNER = `
import json, sys
library, function, arguments = sys.argv[1:4]
if sys.version_info >= (3, 9):
    from importlib.machinery import ExtensionFileLoader
    from importlib.util import module_from_spec, spec_from_file_location
    loader = ExtensionFileLoader("obmalloc_python", library)
    module = module_from_spec(spec_from_file_location("obmalloc_python", library, loader=loader))
    loader.exec_module(module)
    result = module.call(function, arguments)
else:
    import ctypes
    libc = ctypes.CDLL(None)
    libc.dlopen.restype = libc.dlsym.restype = ctypes.c_void_p
    libc.dlopen.argtypes = [ctypes.c_char_p, ctypes.c_int]
    libc.dlsym.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    RTLD_LAZY = 1
    handle = libc.dlopen(library.encode(), RTLD_LAZY)
    call = ctypes.PYFUNCTYPE(ctypes.c_uint64, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
    out = ctypes.create_string_buffer(1 << 20)
    address = libc.dlsym(handle, b"obmalloc_python_call")
    call(address)(function.encode(), arguments.encode(), out, len(out))
    result = out.value.decode()
    if result.startswith('{"error"'):
        raise ValueError(json.loads(result)["error"])
print(result)
`

/** Calls `function_` of the driver in an interpreter. */
export async function drive<Result>(
  interpreter: Interpreter,
  function_: string,
  args: unknown[],
  env: Record<string, string> = {},
): Promise<Result> {
  const argv = ['-c', RUNNER, driver(), function_, JSON.stringify(args)]
  const child = new Started(interpreter.path, argv, { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...env } })
  const [out, errors]: string[][] = [[], []]
  child.between.stdout!.setEncoding('utf8').on('data', (text: string) => out!.push(text))
  child.between.stderr!.setEncoding('utf8').on('data', (text: string) => errors!.push(text))
  const { result: ended } = await passingOn(child, child.ended)
  if (ended !== 0) {
    const said = errors!.join('').trim().split('\n').at(-1) ?? ''
    throw new Error(`the driver in ${interpreter.path} ended with ${ended}: ${said}`)
  }
  return JSON.parse(out!.join('')) as Result
}

/** The arguments for running the driver under the recorder. */
export function driverProgram(function_: string, args: unknown[]): string[] {
  return ['-c', RUNNER, driver(), function_, JSON.stringify(args)]
}
