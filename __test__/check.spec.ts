import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, openSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'

import test, { type ExecutionContext } from 'ava'

import { check as checkWith, type Check, type Finding } from '../dist/checking.js'
import { findInterpreters, type Interpreter } from '../dist/interpreters.js'
import { checker } from '../dist/tools.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const planted = join(root, '__test__', 'planted')
const folder = mkdtempSync(join(tmpdir(), 'obmalloc-check-spec-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

const { usable } = findInterpreters([])
const newest = usable.at(-1)!
/** Whether the planted library can be had, and something to load it. */
const canPlant = usable.length > 0 && compile('planted', [])
const withPlants = canPlant ? test : test.skip
const withPython = usable.length > 0 ? test : test.skip

function libraryOf(name: string): string {
  return join(folder, `lib${name}.so`)
}

function compile(name: string, options: string[]): boolean {
  const source = join(planted, 'planted.c')
  const fixed = ['-O0', '-g0', '-shared', '-fPIC', '-pthread', '-D_GNU_SOURCE']
  return spawnSync('cc', [...fixed, ...options, '-o', libraryOf(name), source, '-ldl'], { stdio: 'inherit' }).status === 0
}

const check = (interpreter: Interpreter, program: readonly string[]) => checkWith(interpreter, program, 'ignore')

/** A program that calls functions of the planted library. */
function planting(plants: readonly string[], library = 'planted'): string[] {
  return [join(planted, 'plant.py'), libraryOf(library), ...plants]
}

/** What a finding must say: the function, what it does, and which functions allocated the blocks. */
type Expected = [by: string, kind: string, call: string, allocated: string | null, used: string, sizes: string, from: string]

function summary({ kind, call, allocated, used, count, sizes, origins, ...place }: Finding): [number, ...Expected] {
  const from = origins.map(({ function: name, count: times }) => `${name}*${times}`).join(' ')
  const all = sizes.map(([size, times]) => `${size}*${times}`).join(' ')
  return [count, place.function ?? '', kind, call, allocated, used, all, from]
}

const byName = (a: readonly unknown[], b: readonly unknown[]) => (JSON.stringify(a) < JSON.stringify(b) ? -1 : 1)

/** All planted faults, and the findings that `check` must report for them. Each has a count of its own. */
function allPlants(): { plants: string[]; expected: [number, ...Expected][] } {
  const plants: string[] = ['in_order:1,24,512,513,100000']
  const expected: [number, ...Expected][] = []
  const plant = (
    name: string,
    [kind, call, allocated, used]: [string, string, string | null, string],
    { by = name, from = name }: { by?: string; from?: string } = {},
  ) => {
    const rounds = (plants.length % 3) + 1
    plants.push(`${name}:${Array.from({ length: rounds }, () => '24,24,700,100000').join(',')}`)
    const sizes = `24*${2 * rounds} 700*${rounds} 100000*${rounds}`
    expected.push([4 * rounds, by, kind, call, allocated, used, sizes, `${from}*${4 * rounds}`])
  }
  // These blocks are larger than all before them, so C's malloc takes them from memory that was never used.
  for (const [name, call, used] of [
    ['unseen_freed_as_raw', 'free', 'raw'],
    ['unseen_reallocated_as_mem', 'realloc', 'mem'],
  ] as const) {
    plants.push(`${name}:${40 << 20}`)
    expected.push([1, name, 'foreign', call, null, used, '', ''])
  }
  plants.push('libc_in_order:1,24,512,513,100000')
  const owners = ['raw', 'mem', 'obj', 'c']
  const named = (owner: string) => (owner === 'c' ? 'libc' : owner)
  for (const allocated of owners)
    for (const used of owners.filter((owner) => owner !== allocated)) {
      plant(`${named(allocated)}_freed_as_${named(used)}`, ['wrong-domain', 'free', allocated, used])
      plant(`${named(allocated)}_reallocated_as_${named(used)}`, ['wrong-domain', 'realloc', allocated, used])
    }
  for (const [name, from] of [
    ['aligned', 'aligned'],
    ['calloc', 'calloc_one'],
    ['array', 'malloc_as_array'],
    ['memalign', 'memalign_64'],
    ['aligned_alloc', 'aligned_alloc_64'],
    ['valloc', 'valloc_page'],
    ['pvalloc', 'pvalloc_pages'],
  ] as const)
    plant(`${name}_freed_as_mem`, ['wrong-domain', 'free', 'c', 'mem'], { from })
  plant('mem_freed_as_nothing', ['wrong-domain', 'free', 'mem', 'c'], { by: 'realloc_to_nothing' })
  plant('mem_deleted', ['wrong-domain', 'free', 'mem', 'c'])
  plant('inside_obj_freed_as_libc', ['interior', 'free', 'obj', 'c'])
  plant('mem_freed_as_libc_by_a_thread', ['wrong-domain', 'free', 'mem', 'c'], { by: 'free_as_libc' })
  plant('libc_freed_again_as_obj', ['freed-before', 'free', 'c', 'obj'])
  plants.push('mem_freed_again_as_libc:24')
  expected.push([1, 'mem_freed_again_as_libc', 'freed-before', 'free', 'mem', 'c', '24*1', 'mem_freed_again_as_libc*1'])
  plant('inside_obj_freed_as_obj', ['interior', 'free', 'obj', 'obj'])
  plant('inside_raw_reallocated_as_mem', ['interior', 'realloc', 'raw', 'mem'])
  plant('obj_freed_twice', ['freed-before', 'free', 'obj', 'obj'])
  plant('raw_freed_twice', ['freed-before', 'free', 'raw', 'raw'])
  plant('mem_reallocated_after_free', ['freed-before', 'realloc', 'mem', 'mem'])
  plant('freed_by_a_hidden_function', ['wrong-domain', 'free', 'obj', 'mem'], { by: 'hidden_free', from: 'hidden_calloc' })
  plant('obj_freed_as_raw_by_a_thread', ['wrong-domain', 'free', 'obj', 'raw'], { by: 'free_as_raw' })
  return { plants, expected }
}

function isWhole(t: ExecutionContext, { processes, ended }: Awaited<ReturnType<typeof check>>, count: number): void {
  t.is(ended, 0)
  t.is(processes.length, count)
  t.deepEqual(
    processes.filter(({ complete, lost }) => !complete || lost.length > 0),
    [],
  )
}

const title = ({ version, path }: Interpreter) => `${version} (${path})`

for (const interpreter of canPlant ? usable : []) {
  test(`every planted fault is found and nothing else: ${title(interpreter)}`, async (t) => {
    const { plants, expected } = allPlants()
    const result = await check(interpreter, planting(plants))
    isWhole(t, result, 1)
    t.deepEqual(result.findings.map(summary).sort(byName), expected.sort(byName))
    for (const { field } of result.findings) t.is(field, null)
    for (const { module, origins } of result.findings)
      for (const path of [module, ...origins.map((origin) => origin.module)]) t.is(path, libraryOf('planted'))
  })
}

for (const interpreter of usable) {
  test.serial(`nothing is found over the bundled workload: ${title(interpreter)}`, async (t) => {
    t.timeout(120_000)
    for (const name of readdirSync(join(root, 'workload')).filter((file) => file.endsWith('.py'))) {
      const { findings, processes, ended } = await check(interpreter, [join(root, 'workload', name)])
      t.deepEqual(findings, [], name)
      t.is(ended, 0, name)
      // CPython puts plain malloc into raw for a moment. If two interpreters do so at the same time, it may stay there for ever.
      const mayLose = name === 'interpreters.py' ? ['raw'] : []
      const areWhole = processes.every(({ complete, lost }) => complete && lost.every((domain) => mayLose.includes(domain)))
      t.true(processes.length > 0 && areWhole, name)
    }
  })
}

// Later releases do not export the function.
for (const interpreter of usable.filter(({ version }) => Number(version.split('.')[1]) < 13)) {
  test(`what raw frees while CPython has plain malloc in its place is no fault: ${title(interpreter)}`, async (t) => {
    const script = join(folder, `default.${interpreter.version}.py`)
    const lines = [
      'import _thread, _xxsubinterpreters, ctypes',
      'other = _xxsubinterpreters.create()',
      'api = ctypes.pythonapi',
      'api.PyMem_RawMalloc.restype = ctypes.c_void_p',
      'api.PyMem_RawFree.argtypes = [ctypes.c_void_p]',
      'before = ctypes.create_string_buffer(64)',
      // Does what CPython does for a moment when an interpreter begins or ends, and what another thread may see.
      'block = api.PyMem_RawMalloc(77)',
      'assert api._PyMem_SetDefaultAllocator(0, before) == 0',
      'api.PyMem_RawFree(block)',
      'lock = _thread.allocate_lock()',
      'api.PyMem_SetAllocator(0, before)',
      'del lock',
    ]
    writeFileSync(script, `${lines.join('\n')}\n`)
    const result = await check(interpreter, [script])
    t.deepEqual(result.findings, [])
    isWhole(t, result, 1)
  })
}

withPlants("a type's field that CPython frees is told for the release at hand", async (t) => {
  const script = join(folder, 'fields.py')
  const lines = [
    load,
    'import gc',
    'for name in sys.argv[1:]:',
    '    made = getattr(library, name)',
    '    made.restype = ctypes.c_void_p',
    '    class Made: pass',
    '    field = ctypes.c_void_p.from_address(id(Made) + 176)',
    '    assert field.value is None',
    '    field.value = made()',
    '    del Made, field',
    '    gc.collect()',
  ]
  writeFileSync(script, `${lines.join('\n')}\n`)
  for (const interpreter of usable) {
    const isMem = Number(interpreter.version.split('.')[1]) >= 13
    const [used, other] = isMem ? ['mem', 'obj'] : ['obj', 'mem']
    const result = await check(interpreter, [script, 'obj_text', 'mem_text', 'libc_text'])
    isWhole(t, result, 1)
    const found = result.findings.map(({ kind, allocated, used: by, field, origins }) => [
      kind,
      allocated,
      by,
      field,
      origins[0]!.function,
    ])
    const expected = [
      ['wrong-domain', other, used, 'tp_doc', `${other}_text`],
      ['wrong-domain', 'c', used, 'tp_doc', 'libc_text'],
    ]
    t.deepEqual(found.sort(byName), expected.sort(byName), title(interpreter))
    const { status, stdout, stderr } = obmalloc(['--python', interpreter.path, '--', script, `${other}_text`])
    t.is(status, 1)
    t.true(stdout.includes(`\n${other} block freed as ${used} (tp_doc) `), stdout)
    const wanted = `tp_doc of a heap type is freed as ${used} by this release: allocate it with Py${isMem ? 'Mem' : 'Object'}_Malloc\n`
    t.true(stderr.endsWith(wanted), stderr)
  }
})

withPlants('a function that no table names is told by its offset', async (t) => {
  t.true(compile('stripped', ['-s']))
  const { findings } = await check(newest, planting(['freed_by_a_hidden_function:24'], 'stripped'))
  t.is(findings.length, 1)
  const { function: name, module, offset } = findings[0]!
  t.is(name, null)
  t.is(module, libraryOf('stripped'))
  const { stdout } = spawnSync('nm', [libraryOf('planted')], { encoding: 'utf8' })
  const start = Number.parseInt(/^(\w+) t hidden_free$/m.exec(stdout)![1]!, 16)
  t.true(offset! > start && offset! < start + 64, `${offset} after ${start}`)
})

withPlants("CPython's own function is not taken for the caller where it does not end in a jump", async (t) => {
  t.true(compile('nojumps', ['-DNO_JUMPS', '-Wl,-Bsymbolic']))
  const { findings } = await check(newest, planting(['mem_freed_as_obj:24'], 'nojumps'))
  t.deepEqual(findings.map(summary), [
    [1, 'mem_freed_as_obj', 'wrong-domain', 'free', 'mem', 'obj', '24*1', 'mem_freed_as_obj*1'],
  ])
})

withPlants('the caller is told though tracemalloc lies in between', async (t) => {
  for (const interpreter of usable) {
    const plants = ['mem_freed_as_obj:24', 'mem_reallocated_as_raw:700', 'libc_freed_as_raw:99999999']
    const result = await check(interpreter, ['-X', 'tracemalloc', ...planting(plants)])
    isWhole(t, result, 1)
    const found = result.findings.map(({ function: name, kind }) => `${name} ${kind}`).sort()
    const expected = ['libc_freed_as_raw wrong-domain', 'mem_freed_as_obj wrong-domain', 'mem_reallocated_as_raw wrong-domain']
    t.deepEqual(found, expected, title(interpreter))
  }
})

withPlants('forked and executed processes report too, and what they find is added up', async (t) => {
  const script = join(folder, 'family.py')
  const lines = [
    'import ctypes, os, subprocess, sys',
    `library = ctypes.PyDLL(${JSON.stringify(libraryOf('planted'))})`,
    'library.mem_freed_as_obj(24)',
    "if sys.argv[1:] == ['last']: sys.exit()",
    'child = os.fork()',
    'if child == 0: library.mem_freed_as_obj(24); library.raw_freed_as_mem(600); os._exit(0)',
    'os.waitpid(child, 0)',
    'child = os.fork()',
    "if child == 0: os.execv(sys.executable, [sys.executable, sys.argv[0], 'last'])",
    'os.waitpid(child, 0)',
    "subprocess.run([sys.executable, sys.argv[0], 'last'], check=True)",
  ]
  writeFileSync(script, `${lines.join('\n')}\n`)
  for (const interpreter of usable) {
    const result = await check(interpreter, [script])
    isWhole(t, result, 4)
    const found = result.findings.map(summary).map(([count, by, , , , , sizes]) => [count, by, sizes])
    t.deepEqual(
      found,
      [
        [4, 'mem_freed_as_obj', '24*4'],
        [1, 'raw_freed_as_mem', '600*1'],
      ],
      title(interpreter),
    )
  }
})

/** Python that has the planted library as `library`. */
const load = `import ctypes, os, signal, subprocess, sys, time; library = ctypes.PyDLL(${JSON.stringify(libraryOf('planted'))})`
const die = 'os.kill(os.getpid(), signal.SIGKILL)'

withPlants('processes that are killed leave all that they had found, and are called killed', async (t) => {
  const program = [
    load,
    'for n in range(12345): library.mem_freed_as_obj(n % 1000)',
    'if os.fork() == 0:',
    '    for n in range(777): library.raw_freed_as_mem(600)',
    `    ${die}`,
    'os.wait()',
    die,
  ]
  for (const interpreter of usable) {
    const { findings, processes, ended } = await check(interpreter, ['-c', program.join('\n')])
    t.is(ended, 'SIGKILL')
    t.deepEqual(
      processes.map(({ complete, running, lost }) => ({ complete, running, lost })),
      Array.from({ length: 2 }, () => ({ complete: false, running: false, lost: [] })),
      title(interpreter),
    )
    const [first, second, ...rest] = findings.map(summary)
    const sizes = Array.from({ length: 1000 }, (_, size) => `${size}*${size < 345 ? 13 : 12}`).join(' ')
    const kind = 'wrong-domain'
    t.deepEqual(first, [12345, 'mem_freed_as_obj', kind, 'free', 'mem', 'obj', sizes, 'mem_freed_as_obj*12345'])
    t.deepEqual(second, [777, 'raw_freed_as_mem', kind, 'free', 'raw', 'mem', '600*777', 'raw_freed_as_mem*777'])
    t.deepEqual(rest, [])
  }
})

withPlants('a process may be killed at any moment', async (t) => {
  // Each child counts its calls in shared memory.
  const script = join(folder, 'anytime.py')
  const lines = [
    load,
    'import mmap, struct',
    'shared = mmap.mmap(-1, 8)',
    'done = 0',
    'for round in range(20):',
    '    shared[:] = bytes(8)',
    '    child = os.fork()',
    '    while child == 0:',
    "        n, = struct.unpack('q', shared[:])",
    '        library.mem_freed_as_obj(n * 16)',
    "        shared[:] = struct.pack('q', n + 1)",
    '    time.sleep(0.003 * round)',
    '    os.kill(child, signal.SIGKILL)',
    '    os.waitpid(child, 0)',
    "    done += struct.unpack('q', shared[:])[0]",
    "open(sys.argv[1], 'w').write(str(done))",
  ]
  writeFileSync(script, `${lines.join('\n')}\n`)
  const told = join(folder, 'anytime.txt')
  const { findings } = await check(newest, [script, told])
  const done = Number(readFileSync(told, 'utf8'))
  const { count, sizes, origins } = findings[0]!
  t.log(`${done} were done, ${count} counted`)
  t.true(done > 1000)
  for (const counted of [count, ...[sizes.map(([, times]) => times), origins.map((origin) => origin.count)].map(sum)]) {
    // The call during which a child was killed may be counted or not.
    t.true(counted >= done && counted <= done + 20, `${done} were done, ${counted} counted`)
  }
})

function sum(numbers: readonly number[]): number {
  return numbers.reduce((all, number) => all + number, 0)
}

withPlants('programs that are started with an environment of their own are looked at too', async (t) => {
  const script = join(folder, 'environments.py')
  const lines = [
    load,
    'library.mem_freed_as_obj(24)',
    "if sys.argv[1:] == ['last']:",
    "    added = {'LC_CTYPE', 'LD_PRELOAD', 'OBMALLOC_CHECK', 'OBMALLOC_CHECK_PID', 'OBMALLOC_UNSAID'}",
    "    sys.exit(sorted(set(os.environ) - added) not in ([], ['A']))",
    "me = [sys.executable, sys.argv[0], 'last']",
    'def ended(status): assert os.WEXITSTATUS(status) == 0 and os.WIFEXITED(status)',
    'subprocess.run(me, env={}, check=True)',
    "subprocess.run(me, env={'A': '1'}, close_fds=False, check=True)",
    `subprocess.run(me, env={'A': '1', 'LD_PRELOAD': ${JSON.stringify(libraryOf('planted'))}}, check=True)`,
    "subprocess.run(['env', '-i', *me], check=True)",
    "subprocess.run(['sh', '-c', 'env -i A=1 \"$@\" && true', 'sh', *me], check=True)",
    "subprocess.run(['env', '-u', 'LD_PRELOAD', sys.executable, '-c', 'pass'], check=True)",
    'ended(os.waitpid(os.posix_spawn(me[0], me, {}), 0)[1])',
    'ended(os.waitpid(os.posix_spawnp(me[0], me, {}), 0)[1])',
    'assert os.spawnve(os.P_WAIT, me[0], me, {}) == 0',
    'child = os.fork()',
    'if child == 0: os.execve(os.open(me[0], os.O_RDONLY), me, {})',
    'ended(os.waitpid(child, 0)[1])',
    'os.environ.clear()',
    'subprocess.run(me, check=True)',
  ]
  writeFileSync(script, `${lines.join('\n')}\n`)
  for (const interpreter of usable) {
    const result = await check(interpreter, [script])
    // If CPython calls fork and not vfork, the child is also checked until it becomes a shell. So there may be more processes.
    isWhole(t, result, result.processes.length)
    t.deepEqual(
      result.findings.map(({ function: name, count }) => [name, count]),
      [['mem_freed_as_obj', 11]],
      title(interpreter),
    )
  }
})

withPlants('processes that go on when the program has ended are waited for, but not for long', async (t) => {
  const program = (seconds: number): string =>
    `${load}\nif os.fork() == 0: time.sleep(${seconds}); library.mem_freed_as_obj(24); sys.exit()`
  const short = await check(newest, ['-c', program(0.5)])
  isWhole(t, short, 2)
  t.is(short.findings[0]?.count, 1)
  const long = await check(newest, ['-c', program(8)])
  t.deepEqual(long.findings, [])
  t.deepEqual(
    long.processes.map(({ complete, running }) => [complete, running]),
    [
      [true, false],
      [false, true],
    ],
  )
})

/** Runs the command line. */
function obmalloc(args: string[], env: Record<string, string> = {}) {
  const { PYTHONMALLOC: _, PYTHONDEVMODE: __, ...clean } = process.env
  return spawnSync(process.execPath, [join(root, 'dist', 'cli.js'), 'check', ...args], {
    encoding: 'utf8',
    env: { ...clean, ...env },
    cwd: folder,
  })
}

withPlants('the command line shows a table, and ends with 1 whatever the program ends with', (t) => {
  const program = [...planting(['mem_freed_as_obj:24,40', 'obj_freed_twice:24']), 'nothing:1']
  const { status, stdout, stderr } = obmalloc(['--python', newest.path, '--', ...program])
  t.is(status, 1)
  const [head, first, second, ...rest] = stdout.split('\n')
  t.regex(head!, /^what +by +from +count +sizes$/)
  t.regex(first!, /^mem block freed as obj +mem_freed_as_obj in libplanted\.so +mem_freed_as_obj in libplanted\.so +2 +24, 40$/)
  t.regex(
    second!,
    /^address that was an obj block freed as obj +obj_freed_twice in libplanted\.so +obj_freed_twice in libplanted\.so +1 +24$/,
  )
  t.deepEqual(rest, [''])
  t.regex(stderr, /found 3 faults in 2 rows, in 1 process; the program ended with 1\n$/)
  const json = JSON.parse(obmalloc(['--python', newest.path, '--json', '--', ...program]).stdout)
  t.is(json.version, newest.version)
  t.is(json.ended, 1)
  t.deepEqual(
    json.findings.map(({ count, sizes }: Finding) => [count, sizes]),
    [
      [
        2,
        [
          [24, 1],
          [40, 1],
        ],
      ],
      [1, [[24, 1]]],
    ],
  )
})

withPython('with nothing found it ends with 0, and the program prints to stderr', (t) => {
  const { status, stdout, stderr } = obmalloc(['--python', newest.path, '--', '-c', 'print("hello"); raise SystemExit(7)'])
  t.is(status, 0)
  t.is(stdout, '')
  t.is(stderr, `hello\nCPython ${newest.version}: found nothing in 1 process; the program ended with 7\n`)
})

withPython('calls that the checker does not see are reported, and the command does not end with 0', (t) => {
  for (const [options, env, culprit] of [
    [[], { PYTHONMALLOC: 'debug' }, 'PYTHONMALLOC=debug (or -X dev)'],
    [[], { PYTHONMALLOC: 'malloc' }, 'PYTHONMALLOC=malloc (or -X dev)'],
    [['-X', 'dev'], {}, '-X dev'],
  ] as const) {
    const { status, stdout, stderr } = obmalloc(['--python', newest.path, '--', ...options, '-c', 'pass'], env)
    t.is(status, 4)
    t.is(stdout, '')
    const said = `${culprit} replaced the checker's allocators: not all raw, mem, obj calls were seen`
    t.true(stderr.endsWith(`: ${said}\n`), stderr)
    t.is(stderr.split('\n').length, 3)
  }
  const killed = obmalloc(['--python', newest.path, '--', '-c', 'import os; os.kill(os.getpid(), 9)'])
  t.is(killed.status, 4)
  t.regex(killed.stderr, /the program ended with SIGKILL\nprocess \d+ was killed: it was looked at until then\n$/)
  // The killed process is a child. Everything that it did until then was seen, or the report says that it was not.
  const child = 'import os, signal; os.fork() or os.kill(os.getpid(), signal.SIGKILL); os.wait()'
  for (const [env, status, more] of [
    [{}, 0, ''],
    [{ PYTHONMALLOC: 'malloc' }, 4, 'process \\d+: not all raw, mem, obj calls were seen\n'],
  ] as const) {
    const result = obmalloc(['--python', newest.path, '--', '-c', child], env)
    t.is(result.status, status, result.stderr)
    t.regex(
      result.stderr,
      new RegExp(`process \\d+ was killed, or left in a way that cannot be seen: it was looked at until then\n${more}$`),
    )
  }
  const daemon = obmalloc(['--python', newest.path, '--', '-c', 'import os, time; os.fork() or time.sleep(8)'])
  t.is(daemon.status, 4)
  t.regex(
    daemon.stderr,
    /in 2 processes; the program ended with 0\nprocess \d+ still runs: what it does from now on is not counted\n/,
  )
})

test('usage errors end with 2 and say what was expected', (t) => {
  for (const args of [[], ['--frob'], ['--python', '/bin/true', '--', 'script.py'], ['--python', '', '--', 'script.py']]) {
    const { status, stdout, stderr } = obmalloc(args)
    t.is(status, 2, args.join(' '))
    t.is(stdout, '')
    t.not(stderr, '')
  }
})

withPython('an error of the checker itself does not look like a finding', (t) => {
  const nowhere = obmalloc(['--python', newest.path, '--', '-c', 'pass'], { TMPDIR: join(folder, 'nowhere') })
  t.is(nowhere.status, 4)
  t.regex(nowhere.stderr, /^obmalloc: .*nowhere/)
  const full = spawnSync(
    process.execPath,
    [join(root, 'dist', 'cli.js'), 'check', '--python', newest.path, '--json', '--', '-c', 'pass'],
    { stdio: ['ignore', openSync('/dev/full', 'w'), 'pipe'], encoding: 'utf8' },
  )
  t.is(full.status, 4)
  t.regex(full.stderr, /\nobmalloc: .*ENOSPC.*\n$/)
})

withPlants('what was found until an interrupt is told', async (t) => {
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    // The program says when it has made its fault, and then waits for a signal.
    const wait = [
      'import signal, sys, time',
      'signal.signal(signal.SIGTERM, lambda *_: sys.exit())',
      "print('ready', flush=True)",
      'time.sleep(60)',
    ]
    const [script, ...rest] = planting(['mem_freed_as_obj:24'])
    const waiting = join(folder, `waiting-${signal}.py`)
    writeFileSync(waiting, [readFileSync(script!, 'utf8'), ...wait, ''].join('\n'))
    const own = mkdtempSync(join(folder, 'own-'))
    const child = spawn(
      process.execPath,
      [join(root, 'dist', 'cli.js'), 'check', '--python', newest.path, '--json', '--', waiting, ...rest],
      { stdio: ['ignore', 'pipe', 'pipe'], detached: true, env: { ...process.env, TMPDIR: own } },
    )
    let [told, said] = ['', '']
    child.stdout.setEncoding('utf8').on('data', (text: string) => (told += text))
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      if (!said.includes('ready') && (said + text).includes('ready')) process.kill(child.pid!, signal)
      said += text
    })
    const [code] = (await once(child, 'close')) as [number]
    t.is(code, 1, said)
    t.is((JSON.parse(told) as Check).findings[0]!.count, 1)
    t.deepEqual(readdirSync(own), [])
  }
})

withPython('a program that was interrupted was not killed', (t) => {
  for (const { path } of usable) {
    const { status, stderr } = obmalloc(['--python', path, '--', '-c', 'raise KeyboardInterrupt'])
    t.is(status, 0)
    t.regex(stderr, /\nCPython .*: found nothing in 1 process; the program ended with SIGINT\n$/)
  }
})

withPython('pymalloc by name, and few descriptors, keep nothing from being seen', (t) => {
  const script = 'import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))'
  for (const { path } of usable)
    for (const mode of [[], ['-X', 'dev']]) {
      const { status, stderr } = obmalloc(['--python', path, '--', ...mode, '-c', script], { PYTHONMALLOC: 'pymalloc' })
      t.is(status, 0)
      t.regex(stderr, /^CPython .*: found nothing in 1 process; the program ended with 0\n$/)
    }
})

withPython('processes that leave by quick_exit come to their end, and none is called killed that may not have been', (t) => {
  const leaving = (how: string): string =>
    `import ctypes, os; c = ctypes.CDLL(None)\nif os.fork() == 0: ${how}\nos.wait()\nif os.fork() == 0: os._exit(0)\nos.wait()`
  const quickly = obmalloc(['--python', newest.path, '--', '-c', leaving('c.quick_exit(0)')])
  t.is(quickly.status, 0)
  t.regex(quickly.stderr, /^CPython .*: found nothing in 3 processes; the program ended with 0\n$/)
  // exit_group
  const unseen = obmalloc(['--python', newest.path, '--', '-c', leaving('c.syscall(231, 0)')])
  t.regex(
    unseen.stderr,
    /ended with 0\nprocess \d+ was killed, or left in a way that cannot be seen: it was looked at until then\n$/,
  )
})

withPython('a process that has made its report, and written nothing to it yet, is waited for', async (t) => {
  const script = [
    'import os, time',
    'report = os.environ["OBMALLOC_CHECK"]',
    'child = os.fork()',
    'if child: os._exit(0)',
    'own = report + "." + str(os.getpid())',
    'os.rename(own, own + "-kept"); open(own, "w").close()',
    'time.sleep(0.3)',
    'os.rename(own + "-kept", own)',
  ]
  isWhole(t, await check(newest, ['-c', script.join('\n')]), 2)
})

withPython('a process whose report cannot be made is named', (t) => {
  const script = [
    'import os, subprocess, sys',
    'folder = os.path.dirname(os.environ["OBMALLOC_CHECK"])',
    'os.rename(folder, folder + "-moved")',
    'subprocess.run([sys.executable, "-c", "pass"], check=True)',
    'os.rename(folder + "-moved", folder)',
  ]
  const { status, stderr } = obmalloc(['--python', newest.path, '--', '-c', script.join('\n')])
  t.is(status, 4)
  const reason = 'its report cannot be made: No such file or directory \\(os error 2\\)'
  t.regex(stderr, new RegExp(`ended with 0\nprocess \\d+: not all that was found could be written: ${reason}\n$`))
})

withPlants('what could not be written is said, and the program is not called killed', (t) => {
  const limit = 'import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); del sys.argv[0]'
  const program = ['-c', `${limit}; runpy.run_path(sys.argv[0])`, ...planting(['mem_freed_as_obj:24'])]
  const { status, stderr } = obmalloc(['--python', newest.path, '--', ...program])
  t.is(status, 4)
  t.regex(stderr, /ended with 0\nprocess \d+: not all that was found could be written: File too large \(os error 27\)\n$/)
})

withPlants('a process whose parent leaves at once is looked at', async (t) => {
  const program = `${load}\nif os.fork(): os._exit(0)\ntime.sleep(0.2); library.mem_freed_as_obj(24); os._exit(0)`
  for (let round = 0; round < 8; round++) {
    const result = await check(newest, ['-c', program])
    isWhole(t, result, 2)
    t.is(result.findings[0]?.count, 1)
  }
})

withPython('nothing is said on the stderr of processes that a program reads', (t) => {
  const run = "subprocess.run([sys.executable, '-X', 'dev', '-c', 'pass'], capture_output=True)"
  const script = `import subprocess, sys; ended = ${run}; assert ended.stderr == b'', ended`
  const { status, stderr } = obmalloc(['--python', newest.path, '--', '-c', script])
  t.is(status, 4)
  t.regex(stderr, /the program ended with 0\nprocess \d+: -X dev replaced the checker's allocators/)
})

withPython('an interrupt ends the wait for processes that go on, and they are reported as running', async (t) => {
  const own = mkdtempSync(join(folder, 'own-'))
  // The child says "ready" some time after its parent has ended.
  const orphan =
    'import os, sys, time; parent = os.getpid()\nif os.fork() == 0:\n    while os.getppid() == parent: time.sleep(0.01)\n'
  const program = `${orphan}    time.sleep(0.3); sys.stderr.write('ready'); os.close(1); os.close(2); time.sleep(8)`
  const child = spawn(
    process.execPath,
    [join(root, 'dist', 'cli.js'), 'check', '--python', newest.path, '--json', '--', '-c', program],
    { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, TMPDIR: own } },
  )
  let [told, said] = ['', '']
  child.stdout.setEncoding('utf8').on('data', (text: string) => (told += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    if (text.includes('ready')) child.kill('SIGINT')
    said += text
  })
  const [code] = (await once(child, 'close')) as [number]
  t.is(code, 4, said)
  t.deepEqual(
    (JSON.parse(told) as Check).processes.map(({ running }) => running),
    [false, true],
  )
  t.deepEqual(readdirSync(own), [])
})

withPython('looking costs at most half of what the program takes', (t) => {
  // Measures processor time, with and without the checker in turn: so other work on the machine matters less.
  const script = [
    'import os, resource, statistics, subprocess, sys',
    'def seconds(more):',
    '    before = resource.getrusage(resource.RUSAGE_CHILDREN)',
    '    subprocess.run([sys.executable, sys.argv[1]], env=dict(os.environ, **more), stdout=subprocess.DEVNULL, check=True)',
    '    after = resource.getrusage(resource.RUSAGE_CHILDREN)',
    '    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime',
    'def ratio(number):',
    '    plain = seconds({})',
    "    return seconds({'LD_PRELOAD': sys.argv[2], 'OBMALLOC_CHECK': '%s%d' % (sys.argv[3], number)}) / plain",
    'print(statistics.median(ratio(number) for number in range(7)))',
  ]
  const args = ['-c', script.join('\n'), join(root, 'workload', 'mixed.py'), checker().join(' '), join(folder, 'cost')]
  const { status, stdout, stderr } = spawnSync(newest.path, args, { encoding: 'utf8' })
  t.is(status, 0, stderr)
  const reports = readdirSync(folder).filter((file) => basename(file).startsWith('cost'))
  t.is(reports.length, 7)
  t.log(`${newest.version}: ${Number(stdout).toFixed(2)} times`)
  t.true(Number(stdout) <= 1.5, stdout)
})
