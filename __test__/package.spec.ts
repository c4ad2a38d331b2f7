/** The two packages as npm packs them, installed into an empty project: what they hold, and that they work there. */

import { execFileSync, spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'

import { findInterpreters } from '../dist/interpreters.js'
import { GLIBC } from '../dist/platform.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const modules = join(root, 'node_modules')
const folder = mkdtempSync(join(tmpdir(), 'obmalloc-package-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

interface Packed {
  readonly filename: string
  readonly unpackedSize: number
  readonly files: ReadonlyArray<{ readonly path: string }>
}

function pack(from: string): Packed {
  const args = ['pack', from, '--json', '--ignore-scripts', '--pack-destination', folder]
  // npm 12 has the packages by name, older ones as a list.
  return Object.values(JSON.parse(execFileSync('npm', args, { encoding: 'utf8' })) as Record<string, Packed>)[0]!
}

const main = pack(root)
const binaries = pack(join(root, 'npm', 'linux-x64-gnu'))
const paths = ({ files }: Packed) => files.map(({ path }) => path)

/** A project that has the packages, and from the clone what they depend on: no registry is asked, no script is run. */
const project = join(folder, 'project')
mkdirSync(project)
writeFileSync(join(project, 'package.json'), '{ "private": true }')
const { dependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { dependencies: Record<string, string> }
const wanted = [
  ...[main, binaries].map(({ filename }) => join(folder, filename)),
  ...Object.keys(dependencies).map((name) => join(modules, name)),
]
const npm = ['install', '--offline', '--install-links', '--ignore-scripts', '--no-audit', '--no-fund', ...wanted]
const installation = spawnSync('npm', npm, { cwd: project, encoding: 'utf8' })

/** Runs a program in the project. */
function run(command: string, args: string[], { cwd = project, env = {} } = {}) {
  const { status, stdout, stderr } = spawnSync(command, args, { cwd, encoding: 'utf8', env: { ...process.env, ...env } })
  return { status, stdout, stderr }
}

function write(name: string, text: string): string {
  writeFileSync(join(project, name), text)
  return name
}

const obmalloc = (args: string[], options: Parameters<typeof run>[2] = {}) =>
  run('npx', ['--no-install', 'obmalloc', ...args], options)

test('they are installed without a warning', (t) => {
  t.is(installation.stderr, '')
  t.is(installation.status, 0)
  t.deepEqual(
    readdirSync(join(project, 'node_modules')).filter((name) => name.startsWith('obmalloc')),
    ['obmalloc', 'obmalloc-linux-x64-gnu'],
  )
})

test('the main package has what runs, what is read, and nothing that only tests need', (t) => {
  const tops = new Set(paths(main).map((path) => path.split('/')[0]!))
  const expected = ['LICENSE', 'README.md', 'dist', 'docs', 'index.d.mts', 'index.d.ts', 'package.json', 'schema', 'workload']
  t.deepEqual([...tops].sort(), expected)
  t.deepEqual(
    paths(main).filter((path) => /^dist\/.*\.d\./.test(path)),
    [],
  )
  for (const built of ['dist/obmalloc.wasm', 'dist/emnapi.js', 'dist/browser.mjs']) t.true(paths(main).includes(built), built)
  // Half of it is WebAssembly and what loads it.
  t.true(main.unpackedSize < 3 << 19, `${main.unpackedSize} bytes`)
})

/** Types of the sections of an ELF file of 64 bits. */
function sections(elf: Buffer): number[] {
  const [begin, size, count] = [Number(elf.readBigUInt64LE(0x28)), elf.readUInt16LE(0x3a), elf.readUInt16LE(0x3c)]
  return Array.from({ length: count }, (_, index) => elf.readUInt32LE(begin + index * size + 4))
}

test('the package of the platform has stripped binaries and the licences', (t) => {
  const files = [
    'libobmalloc_libc.so',
    'libobmalloc_preload.so',
    'obmalloc-measure',
    'obmalloc-run',
    'obmalloc.linux-x64-gnu.node',
    'obmalloc_python.abi3.so',
  ]
  t.deepEqual(paths(binaries).sort(), ['LICENSE', 'LICENSE.zstd', 'README.md', ...files, 'package.json'].sort())
  const [SYMTAB, DYNSYM] = [2, 11]
  for (const file of files) {
    const types = sections(readFileSync(join(project, 'node_modules', 'obmalloc-linux-x64-gnu', file)))
    t.true(types.includes(DYNSYM), file)
    t.false(types.includes(SYMTAB), `${file} has symbols`)
  }
  t.is(readFileSync(join(root, 'npm', 'linux-x64-gnu', 'LICENSE'), 'utf8'), readFileSync(join(root, 'LICENSE'), 'utf8'))
})

const USE = `const heap = new Heap()
const block = heap.obj.malloc(64)
heap.obj.free(block)
console.log(typeof block, heap.allocatedBlocks())
`

test('CommonJS and ES modules get the same objects', (t) => {
  const cjs = write('use.cjs', `const { Heap } = require('obmalloc')\n${USE}`)
  t.deepEqual(run(process.execPath, [cjs]), { status: 0, stdout: 'number 0\n', stderr: '' })
  const same =
    "import { createRequire } from 'node:module'\nconsole.log(createRequire(import.meta.url)('obmalloc').Heap === Heap)\n"
  const mjs = write('use.mjs', `import { Heap } from 'obmalloc'\n${same}${USE}`)
  t.deepEqual(run(process.execPath, [mjs]), { status: 0, stdout: 'true\nnumber 0\n', stderr: '' })
})

const TYPED = `import { Heap, MemoryFault, Trace, type Address, type AbortSignalLike } from 'obmalloc'
export function use(signal: AbortSignalLike, fault: MemoryFault, trace: Trace): string {
  using heap = new Heap({ release: '3.13' })
  const block: Address | null = heap.obj.malloc(64)
  if (block !== null) heap.obj.free(block)
  trace.why({ signal }).then(({ findings }) => findings.length)
  // @ts-expect-error no such member
  heap.nothing
  // @ts-expect-error an address is no plain number
  heap.obj.free(12345)
  return fault.code
}
`

for (const [resolution, module, ...files] of [
  ['node16', 'node16', 'typed.mts', 'typed.cts'],
  ['nodenext', 'nodenext', 'typed.mts', 'typed.cts'],
  ['bundler', 'esnext', 'typed.ts'],
] as const) {
  test(`TypeScript has the types with ${resolution}, and needs no others`, (t) => {
    for (const file of files) write(file, TYPED)
    const types = { module, moduleResolution: resolution, target: 'es2022', lib: ['es2022'], types: [] }
    const compilerOptions = Object.assign(types, { strict: true, skipLibCheck: false, noEmit: true })
    const config = write(`tsconfig.${resolution}.json`, JSON.stringify({ compilerOptions, files }))
    const { status, stdout } = run(process.execPath, [join(modules, 'typescript', 'bin', 'tsc'), '-p', config, '--listFiles'])
    t.is(status, 0, stdout)
    t.regex(stdout, /obmalloc\/index\.d\.mts$/m)
    t.notRegex(stdout, /@types|lib\.dom/)
  })
}

test('esbuild bundles a program that leaves the package out', (t) => {
  const source = write('bundled.ts', `import { Heap } from 'obmalloc'\n${USE}`)
  for (const [format, name] of [
    ['esm', 'bundled.mjs'],
    ['cjs', 'bundled.cjs'],
  ]) {
    const args = [source, '--bundle', '--platform=node', '--external:obmalloc', `--format=${format}`, `--outfile=${name}`]
    const { status, stderr } = run(join(modules, '.bin', 'esbuild'), args)
    t.is(status, 0, stderr)
    t.deepEqual(run(process.execPath, [name!]), { status: 0, stdout: 'number 0\n', stderr: '' })
  }
})

const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string }

test('npx finds the command', (t) => {
  t.deepEqual(obmalloc(['--version']), { status: 0, stdout: `${version}\n`, stderr: '' })
})

test('without a CPython there is nothing to compare with', (t) => {
  const nowhere = { PYENV_ROOT: folder, UV_PYTHON_INSTALL_DIR: folder, HOME: folder, OBMALLOC_PYTHON: '', PATH: folder }
  const cli = join(project, 'node_modules', 'obmalloc', 'dist', 'cli.js')
  t.deepEqual(run(process.execPath, [cli, 'compare'], { env: nowhere }), {
    status: 2,
    stdout: '',
    stderr: 'obmalloc: expected a CPython to compare with, but found none that can be used\n',
  })
})

const python = findInterpreters([]).usable.at(-1)
const withPython = python ? test : test.skip
withPython('an installed package records, checks, trims, measures and drives a CPython', (t) => {
  const trace = join(folder, 'installed.trace')
  const program = ['--python', python!.path, '--', '-c', 'import json; json.dumps(list(range(1000)))']
  for (const args of [
    ['record', '-o', trace, ...program],
    ['report', trace],
    ['what-if', '--allocator', 'glibc', trace],
    ['check', ...program],
    ['compare', ...program],
    ...(/^3\.[89]\./.test(python!.version) ? [] : [['trim', ...program]]),
  ]) {
    const { status, stderr } = obmalloc(args)
    // 1 is a finding.
    t.true(status === 0 || (status === 1 && args[0] === 'report'), `${args.join(' ')}: ${status} ${stderr}`)
  }
})

test('the README says which glibc the package needs', (t) => {
  t.regex(
    readFileSync(join(root, 'README.md'), 'utf8'),
    new RegExp(`^\\| platform \\| Linux with glibc ${GLIBC} or later, x64;`, 'm'),
  )
})

/** A copy of the project, with another binding. */
function copy(name: string, change: (binding: string) => void): string {
  const cwd = join(folder, name)
  cpSync(project, cwd, { recursive: true, verbatimSymlinks: true })
  change(join(cwd, 'node_modules', 'obmalloc-linux-x64-gnu'))
  return cwd
}

for (const [title, change, what] of [
  [
    'without the package of the platform',
    (binding) => rmSync(binding, { recursive: true }),
    `but found none: install obmalloc-linux-x64-gnu@${version}, .*; it needs glibc ${GLIBC} or later`,
  ],
  [
    'with a binding that is none',
    (binding) => writeFileSync(join(binding, 'obmalloc.linux-x64-gnu.node'), 'none'),
    `but it cannot be loaded \\(.*file too short\\): .*; it needs glibc ${GLIBC} or later`,
  ],
] as Array<[string, (binding: string) => void, string]>) {
  test(`${title} an error of one line says what to do where there is no WebAssembly either, and with it heaps work`, (t) => {
    const cwd = copy(title.replaceAll(' ', '-'), change)
    const words = `expected the native binding for linux-x64-gnu, ${what}`
    const heaps = run(process.execPath, ['-e', "new (require('obmalloc').Heap)().obj.malloc(64)"], { cwd })
    t.deepEqual(heaps, { status: 0, stdout: '', stderr: '' })
    t.regex(obmalloc(['--version'], { cwd }).stdout, new RegExp(`^${version} \\(WebAssembly: ${words}\\)\n$`))
    rmSync(join(cwd, 'node_modules', 'obmalloc', 'dist', 'obmalloc.wasm'))
    for (const load of ["import('obmalloc')", "Promise.resolve().then(() => require('obmalloc'))"]) {
      const program = `${load}.catch(({ code, message }) => console.log(code, message))`
      const { stdout } = run(process.execPath, ['-e', program], { cwd })
      t.regex(stdout, new RegExp(`^ERR_NO_BINDING ${words}\n$`))
    }
    const { status, stdout, stderr } = obmalloc(['replay', 'none.trace'], { cwd })
    t.is(status, 4)
    t.is(stdout, '')
    t.regex(stderr, new RegExp(`^obmalloc: ${words}\n$`))
    t.deepEqual(obmalloc(['--version'], { cwd }), { status: 0, stdout: `${version}\n`, stderr: '' })
    t.is(obmalloc(['--help'], { cwd }).status, 0)
  })
}
