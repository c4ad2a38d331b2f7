/** The faces of types, and what a spec is made of. */

import type { Address, FieldKind, ObjectType as Contract, Size, TypeSpec } from '../index.js'
import { badArgument } from './errors.js'
import type { Handle } from './native.js'
import { checkFunction } from './functions.js'

export type HookName = 'traverse' | 'clear' | 'finalize' | 'del' | 'dealloc'
type Hooks = Partial<Record<HookName, (...args: never[]) => unknown>>

/** Kinds of fields, as the binding calls them. */
const kinds: Readonly<Record<FieldKind, string>> = { object: 'o', u8: 'b', i32: 'i', u32: 'u', i64: 'l', f64: 'f' }
const itemKinds = { object: 'o', byte: 'b' } as const
/** What a type can do, as the binding calls it. */
const flags = { gc: 'g', weakrefs: 'w', managedDict: 'm' } as const
const hooks = { traverse: 't', clear: 'c', finalize: 'f', del: 'd', dealloc: 'x' } as const

const loneSurrogate = /\p{Surrogate}/u

/** Only this module makes types. */
const key = Symbol('types are made by heap.defineType')

function oneOf(names: object): string {
  return `one of '${Object.keys(names).join("', '")}'`
}

function member<Names extends object>(name: string, value: unknown, names: Names): Names[keyof Names] {
  if (typeof value === 'string' && Object.hasOwn(names, value)) return names[value as keyof Names]
  throw badArgument(typeof value === 'string' ? 'ERR_OUT_OF_RANGE' : 'ERR_INVALID_ARG_TYPE', name, oneOf(names), value)
}

function checkText(name: string, value: unknown): void {
  if (typeof value !== 'string') throw badArgument('ERR_INVALID_ARG_TYPE', name, 'a string', value)
  if (loneSurrogate.test(value)) throw badArgument('ERR_OUT_OF_RANGE', name, 'a string without lone surrogates', value)
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

/** Looks a spec through before the heap is touched; what it says is read once. */
function read(spec: TypeSpec): Reading {
  if (typeof spec !== 'object' || spec === null) throw badArgument('ERR_INVALID_ARG_TYPE', 'spec', 'an object', spec)
  const { name, fields = {}, items, freeList = 0 } = spec
  checkText('spec.name', name)
  if (typeof fields !== 'object' || fields === null || Array.isArray(fields)) {
    throw badArgument('ERR_INVALID_ARG_TYPE', 'spec.fields', 'an object of names and kinds', fields)
  }
  const members = Object.entries(fields)
  for (const [field] of members) checkText('spec.fields', field)
  const letters = members.map(([field, kind]) => member(`spec.fields.${field}`, kind, kinds)).join('')
  const itemKind = items === undefined ? '' : member('spec.items', items, itemKinds)
  let chosen = ''
  for (const [flag, letter] of Object.entries(flags)) {
    const value = spec[flag as keyof typeof flags] as unknown
    if (value !== undefined && typeof value !== 'boolean')
      throw badArgument('ERR_INVALID_ARG_TYPE', `spec.${flag}`, 'a boolean', value)
    if (value) chosen += letter
  }
  const functions: Hooks = {}
  for (const [hook, letter] of Object.entries(hooks)) {
    const value = spec[hook as HookName]
    checkFunction(`spec.${hook}`, value)
    if (value === undefined) continue
    functions[hook as HookName] = value
    chosen += letter
  }
  const names = members.map(([field]) => field)
  return { name, fields: names, kinds: letters, items: itemKind, flags: chosen, hooks: functions, freeList }
}

/** What a type is made of. */
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
  private readonly native: object
  readonly #handle: Handle
  readonly #number: number
  readonly #fields: ReadonlyMap<string, number>

  constructor(made?: Made) {
    if (made?.key !== key) throw badArgument('ERR_INVALID_ARG_TYPE', 'ObjectType', 'a call of heap.defineType instead', made)
    const { handle, number, shape, fields } = made
    ;[this.name, this.basicsize, this.itemsize] = shape
    this.native = handle.external
    this.#handle = handle
    this.#number = number
    this.#fields = new Map(fields.map((field, index) => [field, index]))
  }

  alloc(nitems?: Size): Address {
    return this.#handle.alloc(this.#number, nitems)
  }

  new(): Address {
    return this.#handle.new(this.#number)
  }

  newVar(nitems: Size): Address {
    return this.#handle.newVar(this.#number, nitems)
  }

  init(memory: Address): Address {
    return this.#handle.init(this.#number, memory)
  }

  initVar(memory: Address, nitems: Size): Address {
    return this.#handle.initVar(this.#number, memory, nitems)
  }

  get(object: Address, field: string | number): Address | number | bigint | null {
    if (typeof field === 'number') return this.#handle.getItem(this.#number, object, field)
    return this.#handle.getField(this.#number, object, this.#index(field))
  }

  set(object: Address, field: string | number, value: Address | number | bigint | null): void {
    if (typeof field === 'number') this.#handle.setItem(this.#number, object, field, value)
    else this.#handle.setField(this.#number, object, this.#index(field), value)
  }

  nitems(object: Address): number {
    return this.#handle.nitems(this.#number, object)
  }

  #index(field: string): number {
    const index = this.#fields.get(field)
    if (index !== undefined) return index
    const names = [...this.#fields.keys()].map((name) => `'${name}'`).join(', ')
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
  /** Whether items do. */
  readonly items: boolean
}

/** The types of a heap, by number. */
export class Types {
  readonly #handle: Handle
  readonly #entries: Entry[] = []

  constructor(handle: Handle) {
    this.#handle = handle
  }

  define(spec: TypeSpec): ObjectType {
    const { name, fields, kinds, items, flags, hooks, freeList } = read(spec)
    const [number, basicsize, itemsize] = this.#handle.defineType(name, fields, kinds, items, flags, freeList)
    const type = new ObjectType({ key, handle: this.#handle, number, shape: [name, basicsize, itemsize], fields })
    const references = fields.filter((_, index) => kinds[index] === 'o')
    this.#entries[number] = { type, hooks, spec, references, items: items === itemKinds.object }
    return type
  }

  of(object: Address): ObjectType {
    const number = this.#handle.typeOf(object)
    // The type of weak references is not defined by anybody.
    this.#entries[number] ??= this.#foreign(number, object)
    return this.#entries[number].type
  }

  #foreign(number: number, object: Address): Entry {
    const type = new ObjectType({ key, handle: this.#handle, number, shape: this.#handle.describeType(object), fields: [] })
    return { type, hooks: {}, references: [], items: false }
  }

  /** What the fields and items of an object hold, where its type has a `traverse` of its own. */
  held(object: Address): Address[] | undefined {
    const { type, hooks, references, items } = this.#entries[this.#handle.typeOf(object)] ?? {}
    if (!type || !hooks?.traverse) return undefined
    const held = references!.map((field) => type.get(object, field))
    if (items) for (let index = 0; index < type.nitems(object); index++) held.push(type.get(object, index))
    return held.filter((referent) => referent !== null) as Address[]
  }

  /** A type that has objects. */
  numbered(number: number): ObjectType {
    return this.#entries[number]!.type
  }

  /** Calls a function of a type's spec. */
  call(number: number, hook: HookName, args: unknown[]): unknown {
    const { hooks, spec } = this.#entries[number]!
    return Reflect.apply(hooks[hook]!, spec, args)
  }
}
