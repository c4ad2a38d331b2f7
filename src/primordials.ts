/** JavaScript's own functions as they are when the package is loaded, before scripts can replace them; and defining properties without setters. */

type Method<This, Args extends unknown[], Result> = (this: This, ...args: Args) => Result

const { bind, call } = Function.prototype
/** A method as a function of its `this` and its arguments. */
const uncurried = bind.bind(call) as <This, Args extends unknown[], Result>(
  method: Method<This, Args, Result>,
) => (self: This, ...args: Args) => Result

export const { apply, defineProperty } = Reflect
export const { freeze, hasOwn, is, keys, preventExtensions } = Object
export const { isArray } = Array
export const { captureStackTrace } = Error
export const NewRangeError = RangeError
export const NewTypeError = TypeError
export const { parse, stringify } = JSON
export const text = String
export const Bytes = Uint8Array
export const Doubles = Float64Array
export const Halves = Uint16Array
export const Words = Uint32Array
export const View = DataView
export const { asIntN } = BigInt
export const textOf = uncurried(Function.prototype.toString)
export const slice = uncurried<string, [start: number, end?: number], string>(String.prototype.slice)
export const hex = uncurried<number, [radix: number], string>(Number.prototype.toString)
export const isWellFormed = uncurried<string, [], boolean>(
  (String.prototype as unknown as { isWellFormed(this: string): boolean }).isWellFormed,
)
export const promiseThen = uncurried<Promise<unknown>, [undefined, () => void], unknown>(Promise.prototype.then)

export const NewMap = Map
const { get, set } = Map.prototype
export const mapGet = uncurried(get) as <Key, Value>(map: ReadonlyMap<Key, Value>, key: Key) => Value | undefined
export const mapSet = uncurried(set) as <Key, Value>(map: Map<Key, Value>, key: Key, value: Value) => void

/** A getter as a function of its object. */
function getter<Self, Value>(prototype: object, name: PropertyKey): (self: Self) => Value {
  const { get: read } = Object.getOwnPropertyDescriptor(prototype, name)!
  return uncurried(read as Method<Self, [], Value>)
}

const TypedArray = Object.getPrototypeOf(Uint8Array.prototype) as Uint8Array
export const bufferOf = getter<Uint8Array<ArrayBuffer>, ArrayBuffer>(TypedArray, 'buffer')
export const lengthOf = getter<Float64Array | Uint8Array, number>(TypedArray, 'length')
export const offsetOf = getter<Uint8Array, number>(TypedArray, 'byteOffset')
/** The name of a typed array's class; undefined of what is none. */
export const tagOf = getter<unknown, string | undefined>(TypedArray, Symbol.toStringTag)
/** Copies bytes, also where both lie in the same memory. */
export const copyBytes = uncurried<Uint8Array, [source: Uint8Array, at: number], void>(TypedArray.set)

const { getUint8, getInt32, getUint32, getFloat64, getBigInt64, setUint8, setInt32, setUint32, setFloat64, setBigInt64 } =
  DataView.prototype
// V8 makes this as quick as a call of the method; the result of `uncurried` takes ten times as long.
export const getU8 = (view: DataView, at: number): number => apply(getUint8, view, [at])
export const getI32 = (view: DataView, at: number): number => apply(getInt32, view, [at, true])
export const getU32 = (view: DataView, at: number): number => apply(getUint32, view, [at, true])
export const getF64 = (view: DataView, at: number): number => apply(getFloat64, view, [at, true])
export const getI64 = (view: DataView, at: number): bigint => apply(getBigInt64, view, [at, true])
export const setU8 = (view: DataView, at: number, value: number): void => apply(setUint8, view, [at, value])
export const setI32 = (view: DataView, at: number, value: number): void => apply(setInt32, view, [at, value, true])
export const setU32 = (view: DataView, at: number, value: number): void => apply(setUint32, view, [at, value, true])
export const setF64 = (view: DataView, at: number, value: number): void => apply(setFloat64, view, [at, value, true])
export const setI64 = (view: DataView, at: number, value: bigint): void => apply(setBigInt64, view, [at, value, true])

/** Without a prototype, so that nothing is looked for in one. */
const description = { __proto__: null, value: undefined as unknown, enumerable: true, configurable: true, writable: true }

/** Defines an own property on an array, or on an object that no script has seen. Returns false if a script has made that impossible. */
export function define(object: object, name: PropertyKey, value: unknown): boolean {
  description.value = value
  const done = defineProperty(object, name, description)
  description.value = undefined
  return done
}

/** Appends to an array. */
export function append<Element>(array: Element[], element: Element): void {
  define(array, array.length, element)
}

/** Texts in a row. */
export function join(texts: readonly string[], between: string): string {
  let joined = ''
  for (let index = 0; index < texts.length; index++) joined += (index === 0 ? '' : between) + texts[index]
  return joined
}
