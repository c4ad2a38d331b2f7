/** The package's files that are no JavaScript: where they lie in a clone and in an installed package. */

import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'

import { needLinux, platform } from './platform.js'

const root = join(__dirname, '..')

/** The path of `name`, which the platform package holds, on Linux with glibc. */
function ofPlatform(name: string): string {
  needLinux()
  const places = [join(root, 'npm', platform, name)]
  try {
    places.push(join(dirname(require.resolve(`obmalloc-${platform}/package.json`)), name))
  } catch {
    // Not installed: then it is a clone.
  }
  const found = places.find((place) => existsSync(place))
  if (!found)
    throw new Error(
      `expected ${name} for ${platform} in ${places.join(' or ')}, but it is not there: build the package, or install it anew`,
    )
  return found
}

/** The recorder: what is preloaded into a CPython. */
export const recorder = (): string => ofPlatform('libobmalloc_preload.so')

/** What is preloaded into a CPython to be checked: the recorder, which is the checker too, and the way to it from C's allocator. */
export const checker = (): string[] => [recorder(), ofPlatform('libobmalloc_libc.so')]

/** The driver: the extension module that is loaded into a CPython. */
export const driver = (): string => ofPlatform('obmalloc_python.abi3.so')

/** The program that makes a recording's calls with whatever `malloc` it is given. */
export const measurer = (): string => ofPlatform('obmalloc-measure')

/** The program that stands between the command line and a program that it runs. */
export const runner = (): string => ofPlatform('obmalloc-run')

/** A bundled Python program. */
export const workload = (name: string): string => join(root, 'workload', `${name}.py`)

/** Where a clone has the golden traces, and in `gc` the golden answers of collectors. An installed package has none. */
export const golden = (): string => join(root, '__test__', 'golden')
