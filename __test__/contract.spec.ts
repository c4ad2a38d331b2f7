/** The words of index.d.ts: every member has them, every code exists, every example runs. */

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'
import ts from 'typescript'

import { findInterpreters } from '../dist/interpreters.js'
import { contract, documented } from './contract.ts'

const root = fileURLToPath(new URL('..', import.meta.url))
/** The functions among them. */
const functions = documented.flatMap(({ name, node, text }) =>
  ts.isMethodSignature(node) ||
  ts.isMethodDeclaration(node) ||
  ts.isFunctionDeclaration(node) ||
  ts.isConstructorDeclaration(node)
    ? [{ name, node, text }]
    : [],
)

test('every exported member has a comment of its own', (t) => {
  t.true(documented.length > 300)
  t.deepEqual(
    documented.filter(({ text }) => !/[a-z]/.test(text)).map(({ name }) => name),
    [],
  )
})

test('every parameter has its words, and every result', (t) => {
  t.true(functions.length > 70)
  for (const { name, node, text } of functions) {
    const parameters = node.parameters.map((parameter) => parameter.name.getText())
    t.deepEqual(
      [...text.matchAll(/^@param (\w+) \S/gm)].map(([, parameter]) => parameter),
      parameters,
      name,
    )
    const gives = node.type !== undefined && node.type.kind !== ts.SyntaxKind.VoidKeyword
    t.is([...text.matchAll(/^@returns \S/gm)].length, gives ? 1 : 0, name)
    if (node.type?.getText().includes('null')) t.regex(text, /@returns [^@]*`null`/, `${name} says when it is null`)
  }
})

test('every code that is named exists, and every code of a fault is named', (t) => {
  const engine = ['crates/obmalloc/src/domain/fault.rs', 'crates/obmalloc-node/src/failure.rs']
  const thrown = new Set<string>(engine.flatMap((file) => readFileSync(join(root, file), 'utf8').match(/\bERR_[A-Z_]+\b/g) ?? []))
  const union = contract.statements.filter(ts.isTypeAliasDeclaration).find(({ name }) => name.text === 'FaultCode')!
  const faults = new Set<string>(union.getText().match(/\bERR_[A-Z_]+\b/g))
  const others = { ERR_NO_MEMORY: 'MemoryError', ERR_OUT_OF_RANGE: 'RangeError', ERR_INVALID_ARG_TYPE: 'TypeError' }
  t.deepEqual([...faults, ...Object.keys(others)].toSorted(), [...thrown].toSorted())
  const named = new Set<string>(contract.text.match(/\bERR_[A-Z_]+\b/g))
  t.deepEqual([...named].toSorted(), [...thrown].toSorted())
  for (const { name, text } of documented) {
    const clauses = text.split(/^@/m).filter((tag) => tag.startsWith('throws'))
    for (const clause of clauses) {
      const [, error = '', rest = ''] = /^throws \{(\w+)\} (.*)/s.exec(clause) ?? []
      t.regex(error, /^(Memory(Fault|Error)|(Range|Type)Error|(Trace|Place|Usage)Error)$/, `${name}: ${clause}`)
      for (const [code] of rest.matchAll(/\bERR_[A-Z_]+\b/g))
        t.is(faults.has(code) ? 'MemoryFault' : others[code as keyof typeof others], error, `${name}: ${code}`)
    }
  }
})

test('what it links to is there', (t) => {
  const links = [...contract.text.matchAll(/\]\((docs\/[^)#]+)\)/g)].map(([, path]) => path!)
  t.true(new Set(links).size >= 7)
  for (const path of links) t.true(existsSync(join(root, path)), path)
})

interface Example {
  readonly name: string
  readonly code: string
}

const examples: Example[] = documented.flatMap(({ name, text }) =>
  [...text.matchAll(/^@example\n(?:(?!```|@).*\n)*```ts\n(.*?)^```/gms)].map(([, code]) => ({ name, code: code! })),
)

/** What the shorter examples take as given. */
const PRELUDE = "import { check, diff, Trace } from 'obmalloc'\nconst trace = await Trace.open('run.trace')\n"
const needsPython = ({ code }: Example): boolean => !code.startsWith('import') || /\b(record|compare)\(\[/.test(code)

const { usable } = findInterpreters([])
const folder = mkdtempSync(join(tmpdir(), 'obmalloc-contract-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

/** Compiles the examples, strictly; gives what the compiler says. */
function compile(): string[] {
  mkdirSync(join(folder, 'node_modules'))
  symlinkSync(root, join(folder, 'node_modules', 'obmalloc'))
  const files = examples.map(({ code }, index) => {
    const file = join(folder, `example${index}.mts`)
    writeFileSync(file, code.startsWith('import') ? code : PRELUDE + code)
    return file
  })
  const program = ts.createProgram(files, {
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.NodeNext,
    lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts'],
    types: ['node'],
    typeRoots: [join(root, 'node_modules', '@types')],
    strict: true,
    noUncheckedIndexedAccess: true,
    skipLibCheck: true,
  })
  const { diagnostics } = program.emit()
  return [...ts.getPreEmitDiagnostics(program), ...diagnostics].map(
    ({ file, messageText }) => `${file?.fileName}: ${ts.flattenDiagnosticMessageText(messageText, '\n')}`,
  )
}

test.serial('every class has an example, and all examples compile', (t) => {
  const classes = contract.statements.filter(ts.isClassDeclaration).map(({ name }) => name!.text)
  for (const name of [...classes, 'Domain', 'Allocator', 'ArenaAllocator', 'Collector', 'record', 'check', 'compare', 'diff'])
    t.true(
      examples.some((example) => example.name === name),
      name,
    )
  t.is(examples.length, contract.text.match(/@example/g)!.length)
  t.deepEqual(compile(), [])
})

test.serial('every example runs as it stands, and prints what it says', (t) => {
  const env = { ...process.env, PYENV_ROOT: folder, UV_PYTHON_INSTALL_DIR: folder, OBMALLOC_PYTHON: usable[0]?.path ?? '' }
  const rows =
    "kept = []\nfor n in range(2):\n kept.append([str(i) for i in range(9999)][7])\n __import__('sys').audit('obmalloc.mark', 'job')\n"
  if (usable.length > 0) {
    const record = [join(root, 'dist/cli.js'), 'record', '-o', 'run.trace', '--', '-c', rows]
    t.is(spawnSync(process.execPath, record, { cwd: folder, env }).status, 0)
    writeFileSync(
      join(folder, 'test_nothing.py'),
      'import unittest\nclass Nothing(unittest.TestCase):\n    def test(self): pass\n',
    )
  } else t.log('no CPython was found: the examples that record are not run')
  for (const [index, example] of examples.entries()) {
    if (needsPython(example) && usable.length === 0) continue
    const { status, stdout, stderr } = spawnSync(process.execPath, [`example${index}.mjs`], {
      cwd: folder,
      encoding: 'utf8',
      env,
    })
    t.is(status, 0, `${example.name}: ${stderr}`)
    const said = [...example.code.matchAll(/console\.log\(.*\) \/\/ (.*)/g)].map(([, text]) => text)
    if (said.length > 0) t.deepEqual(stdout.trim().split('\n'), said, example.name)
  }
})
