/** Takes the place of the parts of Node.js that the face uses, as far as a browser has them. */

export const constants = { MAX_LENGTH: 2 ** 31 - 1 }

export const isNativeError = (value: unknown): boolean => value instanceof Error

const generator = Object.getPrototypeOf(function* () {}) as { readonly prototype: object }

export const types = {
  isProxy: () => false,
  isPromise: (value: unknown): value is Promise<unknown> => value instanceof Promise,
  isGeneratorObject: (value: unknown): boolean =>
    typeof value === 'object' && value !== null && generator.prototype.isPrototypeOf(value),
}

/** A value in words. */
export function inspect(value: unknown): string {
  try {
    return typeof value === 'string' ? JSON.stringify(value) : typeof value === 'bigint' ? `${value}n` : String(value)
  } catch {
    return Object.prototype.toString.call(value)
  }
}

export default {
  emitWarning: (warning: string | Error) => console.warn(warning),
  stderr: { write: (text: string) => console.error(text) },
}
