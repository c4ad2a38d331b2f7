/** The table of C names: complete, generated, and true of what it names. */

import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, readdirSync } from 'node:fs'

import test from 'ava'

import * as obmalloc from 'obmalloc'
import { Heap } from 'obmalloc'

interface Row {
  c: string
  typescript: string | null
  rust: string | null
  state: 'exact' | 'adapted'
  note?: string
  tests: string[]
}

const root = new URL('..', import.meta.url)
const read = (path: string): string => readFileSync(new URL(path, root), 'utf8')
const { sections } = JSON.parse(read('compat/capi.json')) as { sections: Array<{ title: string; rows: Row[] }> }
const rows = sections.flatMap((section) => section.rows)

/** Every name of the specification. */
const names = `
  PyMem_RawMalloc PyMem_RawCalloc PyMem_RawRealloc PyMem_RawFree PyMem_Malloc PyMem_Calloc PyMem_Realloc PyMem_Free
  PyObject_Malloc PyObject_Calloc PyObject_Realloc PyObject_Free PyType_GenericAlloc PyObject_Init PyObject_InitVar PyObject_New
  PyObject_NewVar PyObject_Del PyObject_GC_New PyObject_GC_NewVar PyObject_GC_Track PyObject_GC_UnTrack PyObject_GC_Del
  PyErr_NoMemory PyMemAllocatorEx PyMemAllocatorDomain PyMem_GetAllocator PyMem_SetAllocator PYMEM_DOMAIN_RAW PYMEM_DOMAIN_MEM
  PYMEM_DOMAIN_OBJ PyObject PyVarObject PyTypeObject Py_ssize_t PyObject_HEAD PyVarObject_HEAD_INIT Py_TPFLAGS_DEFAULT
  Py_TPFLAGS_HAVE_GC Py_TYPE Py_DECREF Py_CLEAR Py_VISIT visitproc traverseproc inquiry destructor tp_name tp_basicsize tp_flags
  tp_new tp_alloc tp_free tp_dealloc tp_traverse tp_clear PyList_New PyDict_New PyUnicode_FromString
`
  .trim()
  .split(/\s+/)

test('no name is missing, and none is there twice', (t) => {
  const known = rows.map(({ c }) => c)
  t.is(new Set(known).size, known.length)
  for (const name of names) t.true(known.includes(name), name)
})

test('every row is exact, or says how it was adapted', (t) => {
  for (const { c, state, typescript, note } of rows) {
    t.true(['exact', 'adapted'].includes(state), c)
    if (state === 'adapted') t.true(note !== undefined || typescript !== null, c)
    else t.truthy(typescript, c)
  }
})

test('every row names tests that exist', (t) => {
  for (const { c, tests } of rows) {
    t.true(tests.length > 0, c)
    for (const proof of tests) {
      const [file, title] = [proof.slice(0, proof.indexOf(': ')), proof.slice(proof.indexOf(': ') + 2)]
      t.true(existsSync(new URL(file, root)), `${c}: ${file}`)
      t.true(read(file).includes(title), `${c}: ${proof}`)
    }
  }
})

test('what TypeScript has is there', (t) => {
  using heap = new Heap()
  const contract = read('index.d.ts')
  const objects: Record<string, object> = {
    heap,
    gc: heap.gc,
    ObjectType: heap.defineType({ name: 't' }),
  }
  for (const { c, typescript } of rows) {
    if (typescript === null) continue
    const [first, ...path] = typescript.split('.')
    if (first! in objects) {
      const found = path.reduce<unknown>((value, name) => (value as Record<string, unknown>)[name], objects[first!])
      t.not(found, undefined, `${c}: ${typescript}`)
    } else {
      t.true(first! in obmalloc || new RegExp(`\\b(interface|class|type) ${first}\\b`).test(contract), `${c}: ${typescript}`)
      for (const name of path) t.regex(contract, new RegExp(`\\b${name}\\??[(:]`), `${c}: ${typescript}`)
    }
  }
})

const folder = 'crates/obmalloc/src'
const sources = readdirSync(new URL(folder, root), { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.rs'))
  .map((file) => read(`${folder}/${file}`))
  .join('\n')

test('what Rust has is there', (t) => {
  for (const { c, rust } of rows) {
    if (rust === null || rust === 'usize') continue
    const [type, name] = rust.split('::')
    t.regex(sources, new RegExp(`pub (struct|enum|trait) ${type}\\b`), `${c}: ${rust}`)
    if (name) t.regex(sources, new RegExp(`\\bfn ${name}\\b|^    (pub )?${name}\\b`, 'm'), `${c}: ${rust}`)
  }
})

test('a search for a C name in the documentation of Rust finds the item that answers it', (t) => {
  for (const { c, rust } of rows) {
    // An item of that very name is found without an alias, and rustdoc refuses one.
    if (rust === null || rust === 'usize' || rust.endsWith(`::${c}`)) continue
    const aliases = [
      ...sources.matchAll(new RegExp(`#\\[doc\\(alias(?: = |\\()[^\\]]*"${c.replaceAll('.', '\\.')}"[^\\]]*\\)\\]`, 'g')),
    ]
    t.is(aliases.length, 1, c)
    const [, item] = /^(?:\s*#\[.*\])*\s*(.*)/.exec(sources.slice(aliases[0]!.index + aliases[0]![0].length))!
    t.regex(item!, new RegExp(`\\b${rust.split('::').at(-1)}\\b`), `${c}: ${rust}`)
  }
})

test('the table is what is made of it', (t) => {
  const { status, stderr } = spawnSync(process.execPath, ['scripts/capi.mjs', '--check'], { cwd: root, encoding: 'utf8' })
  t.is(status, 0, stderr)
})
