/** The faces of types, and reading a type's spec. */

import type { Address, FieldKind, ObjectType as Contract, Size, TypeSpec, TypeSummary } from '../index.js'
import { badArgument } from './errors.js'
import { checkFunction } from './functions.js'
import { inspected, shown } from './inspect.js'
import { native, on as onHandle, type Handle } from './native.js'
import { NewMap, append, apply, freeze, hasOwn, isArray, isWellFormed, join, keys, mapGet, mapSet } from './primordials.js'

/** A constant of this module, because each use of an import is a look into the other module's exports. */
const on = onHandle

const {
  alloc,
  new: newObject,
  newVar,
  init,
  initVar,
  getItem,
  getField,
  setItem,
  setField,
  nitems,
  defineType,
  typeOf,
  describeType,
  visit,
} = native

export type HookName = 'traverse' | 'clear' | 'finalize' | 'del' | 'dealloc'
type Hooks = Partial<Record<HookName, (...args: never[]) => unknown>>

/** Kinds of fields, as the binding calls them. */
const kinds: Readonly<Record<FieldKind, string>> = { object: 'o', u8: 'b', i32: 'i', u32: 'u', i64: 'l', f64: 'f' }
const itemKinds = { object: 'o', byte: 'b' } as const
/** What a type can do, as the binding calls it. */
const flags = { gc: 'g', weakrefs: 'w', managedDict: 'm' } as const
const hooks = { traverse: 't', clear: 'c', finalize: 'f', del: 'd', dealloc: 'x' } as const
const flagNames = keys(flags) as Array<keyof typeof flags>
const hookNames = keys(hooks) as HookName[]
const none = freeze({ __proto__: null }) as object

/** Only this module makes types. */
const key = Symbol('types are made by heap.defineType')

function oneOf(names: object): string {
  return `one of '${join(keys(names), "', '")}'`
}

function member<Names extends object>(name: string, value: unknown, names: Names): Names[keyof Names] {
  if (typeof value === 'string' && hasOwn(names, value)) return names[value as keyof Names]
  throw badArgument(typeof value === 'string' ? 'ERR_OUT_OF_RANGE' : 'ERR_INVALID_ARG_TYPE', name, oneOf(names), value)
}

function checkText(name: string, value: unknown): void {
  if (typeof value !== 'string') throw badArgument('ERR_INVALID_ARG_TYPE', name, 'a string', value)
  if (!isWellFormed(value)) throw badArgument('ERR_OUT_OF_RANGE', name, 'a string without lone surrogates', value)
}

interface Reading {
  readonly name: string
  readonly fields: string[]
  readonly kinds: string
  readonly items: string
  readonly flags: string
  readonly hooks: Hooks
  readonly freeList: unknown
}

/** Checks a spec before the heap is touched, and reads each of its properties once. */
function read(spec: TypeSpec): Reading {
  if (typeof spec !== 'object' || spec === null) throw badArgument('ERR_INVALID_ARG_TYPE', 'spec', 'an object', spec)
  const { name, fields = none, items, freeList = 0 } = spec
  checkText('spec.name', name)
  if (typeof fields !== 'object' || fields === null || isArray(fields)) {
    throw badArgument('ERR_INVALID_ARG_TYPE', 'spec.fields', 'an object of names and kinds', fields)
  }
  const names = keys(fields)
  const values: unknown[] = []
  for (let index = 0; index < names.length; index++) append(values, (fields as Record<string, unknown>)[names[index]!])
  for (let index = 0; index < names.length; index++) checkText('spec.fields', names[index])
  let letters = ''
  for (let index = 0; index < names.length; index++) letters += member(`spec.fields.${names[index]}`, values[index], kinds)
  const itemKind = items === undefined ? '' : member('spec.items', items, itemKinds)
  let chosen = ''
  for (let index = 0; index < flagNames.length; index++) {
    const flag = flagNames[index]!
    const value = spec[flag] as unknown
    if (value !== undefined && typeof value !== 'boolean')
      throw badArgument('ERR_INVALID_ARG_TYPE', `spec.${flag}`, 'a boolean', value)
    if (value) chosen += flags[flag]
  }
  const functions = { __proto__: null } as Hooks
  for (let index = 0; index < hookNames.length; index++) {
    const hook = hookNames[index]!
    const value = spec[hook]
    checkFunction(`spec.${hook}`, value)
    if (value === undefined) continue
    functions[hook] = value
    chosen += hooks[hook]
  }
  return { name, fields: names, kinds: letters, items: itemKind, flags: chosen, hooks: functions, freeList }
}

/** The parts of a type's spec, as the binding takes them. */
interface Made {
  readonly key: typeof key
  readonly handle: Handle
  readonly number: number
  readonly shape: readonly [name: string, basicsize: number, itemsize: number]
  readonly fields: readonly string[]
}

export class ObjectType implements Contract {
  readonly name: string
  readonly basicsize: number
  readonly itemsize: number
  /** Keeps a type from being posted to another thread as if it were a plain object. */
  protected readonly native: object
  readonly #handle: Handle
  readonly #number: number
  readonly #fields: readonly string[]
  readonly #indices = new NewMap<string, number>()

  constructor(made?: Made) {
    if (made?.key !== key) throw badArgument('ERR_INVALID_ARG_TYPE', 'ObjectType', 'a call of heap.defineType instead', made)
    const { handle, number, shape, fields } = made
    this.name = shape[0]
    this.basicsize = shape[1]
    this.itemsize = shape[2]
    this.native = native.external
    this.#handle = handle
    this.#number = number
    this.#fields = fields
    for (let index = 0; index < fields.length; index++) mapSet(this.#indices, fields[index]!, index)
  }

  alloc(nitems?: Size): Address {
    return alloc(this.#number, nitems, on(this.#handle))
  }

  new(): Address {
    return newObject(this.#number, on(this.#handle))
  }

  newVar(nitems: Size): Address {
    return newVar(this.#number, nitems, on(this.#handle))
  }

  init(memory: Address): Address {
    return init(this.#number, memory, on(this.#handle))
  }

  initVar(memory: Address, nitems: Size): Address {
    return initVar(this.#number, memory, nitems, on(this.#handle))
  }

  get(object: Address, field: string | number): Address | number | bigint | null {
    if (typeof field === 'number') return getItem(this.#number, object, field, on(this.#handle))
    return getField(this.#number, object, this.#index(field), on(this.#handle))
  }

  set(object: Address, field: string | number, value: Address | number | bigint | null): void {
    if (typeof field === 'number') setItem(this.#number, object, field, value, on(this.#handle))
    else setField(this.#number, object, this.#index(field), value, on(this.#handle))
  }

  nitems(object: Address): number {
    return nitems(this.#number, object, on(this.#handle))
  }

  toJSON(): TypeSummary {
    return this.#summary()
  }

  [inspected](): string {
    return shown('ObjectType', this.#summary())
  }

  #summary(): TypeSummary {
    const fields: string[] = []
    for (let index = 0; index < this.#fields.length; index++) append(fields, this.#fields[index]!)
    return { name: this.name, basicsize: this.basicsize, itemsize: this.itemsize, fields }
  }

  #index(field: string): number {
    const index = mapGet(this.#indices, field)
    if (index !== undefined) return index
    const names = this.#fields.length === 0 ? '' : `'${join(this.#fields, "', '")}'`
    const code = typeof field === 'string' ? 'ERR_OUT_OF_RANGE' : 'ERR_INVALID_ARG_TYPE'
    throw badArgument(code, 'field', `a field of ${this.name} (${names || 'it has none'}) or the number of an item`, field)
  }
}

interface Entry {
  readonly type: ObjectType
  readonly hooks: Hooks
  readonly spec?: TypeSpec
  /** Names of the fields that hold objects. */
  readonly references: readonly string[]
  /** Whether its items hold objects. */
  readonly items: boolean
}

/** The types of a heap, by number. */
export class Types {
  readonly #handle: Handle
  /** Made when it is first needed, because many heaps never need it. */
  #made?: Map<number, Entry>

  constructor(handle: Handle) {
    this.#handle = handle
  }

  get #entries(): Map<number, Entry> {
    return (this.#made ??= new NewMap<number, Entry>())
  }

  define(spec: TypeSpec): ObjectType {
    const { name, fields, kinds, items, flags, hooks, freeList } = read(spec)
    const made = defineType(name, fields, kinds, items, flags, freeList, on(this.#handle))
    const number = made[0]
    const type = new ObjectType({ key, handle: this.#handle, number, shape: [name, made[1], made[2]], fields })
    const references: string[] = []
    for (let index = 0; index < fields.length; index++) if (kinds[index] === 'o') append(references, fields[index]!)
    mapSet(this.#entries, number, { type, hooks, spec, references, items: items === itemKinds.object })
    return type
  }

  of(object: Address): ObjectType {
    const number = typeOf(object, on(this.#handle))
    const known = mapGet(this.#entries, number)
    if (known) return known.type
    // No call defines the type of weak references.
    const shape = describeType(object, on(this.#handle))
    const type = new ObjectType({ key, handle: this.#handle, number, shape, fields: [] })
    mapSet(this.#entries, number, { type, hooks: none, references: [], items: false })
    return type
  }

  /** What the fields and items of an object hold, where its type has a `traverse` of its own. */
  held(object: Address): Address[] | undefined {
    const entry = mapGet(this.#entries, typeOf(object, on(this.#handle)))
    if (!entry?.hooks.traverse) return undefined
    const { type, references, items } = entry
    const held: Address[] = []
    const add = (field: string | number): void => {
      const referent = type.get(object, field) as Address | null
      if (referent !== null) append(held, referent)
    }
    for (let index = 0; index < references.length; index++) add(references[index]!)
    if (items) for (let index = 0; index < type.nitems(object); index++) add(index)
    return held
  }

  /** A type that has objects. */
  numbered(number: number): ObjectType {
    return mapGet(this.#entries, number)!.type
  }

  /** Calls a function of a type's spec. */
  call(number: number, hook: HookName, args: unknown[]): unknown {
    const { hooks, spec } = mapGet(this.#entries, number)!
    return apply(hooks[hook]!, spec, args)
  }

  /** From inside a `traverse`. */
  visit(referent: Address): void {
    visit(referent, on(this.#handle))
  }
}
