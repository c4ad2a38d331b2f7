#!/usr/bin/env node
/**
 * The command line. Exit codes: 0 all matched, or nothing was found; 1 `check`, `why` or `report` found something, or a limit of `budget` is
 * broken; 2 usage; 3 an unreadable trace; 4 something did not match, could not be checked, or was not recorded to its end, and any other error.
 * `record` and `trim` pass the program's own exit code on, or 128 plus the signal's number when a signal ended it.
 */

import { readFileSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'

import { Command, CommanderError, InvalidArgumentError } from 'commander'

import type { BudgetCommandOptions } from './commands/budget.js'
import type { CheckCommandOptions } from './commands/check.js'
import type { CompareOptions } from './commands/compare.js'
import type { DiffCommandOptions } from './commands/diff.js'
import type { EventsCommandOptions } from './commands/events.js'
import type { MapCommandOptions } from './commands/map.js'
import type { ExportCommandOptions } from './commands/export.js'
import type { RecordCommandOptions } from './commands/record.js'
import type { ReportCommandOptions } from './commands/report.js'
import type { ReplayCommandOptions } from './commands/replay.js'
import type { TrimCommandOptions } from './commands/trim.js'
import type { TopCommandOptions } from './commands/top.js'
import type { WhyCommandOptions } from './commands/why.js'
import type { WhatIfCommandOptions } from './commands/what-if.js'
import { removeAtSignals } from './temporary.js'
import { say } from './terminal.js'
import { TraceError } from './trace.js'
import { UsageError } from './usage.js'

const { version: number } = JSON.parse(readFileSync(join(__dirname, '..', 'package.json'), 'utf8')) as { version: string }

function collect(value: string, before: string[]): string[] {
  return [...before, value]
}

function count(value: string): number {
  if (!/^\d+$/.test(value)) throw new InvalidArgumentError('expected a whole number')
  if (!Number.isSafeInteger(Number(value))) throw new InvalidArgumentError('expected a smaller number')
  return Number(value)
}

const MOMENTS = 'the moment: end (before finalization), peak, mark:NAME, mark:NAME#2, event:N or time:SECONDS'

/** The version. If the binding is not the platform's own, also which one it is and why. */
async function versionAndBinding(): Promise<string> {
  const { load } = await import('./loading.js')
  try {
    const { fallback } = load()
    return fallback === null ? number : `${number} (WebAssembly: ${fallback})`
  } catch {
    // A command that needs the binding says what is wrong with it.
    return number
  }
}

function commandLine(version: string, done: (code: number) => void): Command {
  const program = new Command('obmalloc')
    .description("CPython's memory system: compare it with this one, record it, replay it, check who uses it")
    .version(version)
    .exitOverride()
    .configureOutput({ writeErr: (text) => process.stderr.write(text) })
  program
    .command('compare')
    .description('record a program in real CPythons, replay it here, and compare every address, arena and statistic')
    .option('--python <path>', 'a CPython to compare with (may be repeated)', collect, [])
    .option('--all', 'all CPythons found: in OBMALLOC_PYTHON, on PATH, in the places of pyenv and uv')
    .option('--gc', 'run random programs for the cyclic collector on both sides too, and compare every event')
    .option('--json', 'print the results as JSON')
    .option('--keep <folder>', 'keep the traces in an existing folder')
    .argument('[program...]', 'a script and its arguments, or -m and a module, behind --; the bundled workload if there is none')
    .action(async (args: string[], options: CompareOptions) =>
      done(await (await import('./commands/compare.js')).compareCommand(args, options)),
    )
  program
    .command('record')
    .description('run a program in a CPython and write down every allocator call')
    .option('--python <path>', 'the CPython (default: python3)')
    .option('-o, --output <file>', 'the trace; one that is there already is replaced', 'obmalloc.trace')
    .option('-f, --force', 'replace a file that is there and is no trace')
    .option(
      '--stacks <frames>',
      'most frames of the stack that each request is made under, innermost first; 0 for none',
      count,
      64,
    )
    .option('--every <ms>', 'milliseconds between two samples of resident memory, at least; 0 for none', count, 100)
    .option('--no-types', 'do not tell what types live objects have at marks and at the end')
    .option('--trim <words>', 'give back what is not used meanwhile, as trim does: asked, or every=30s,above=16M,idle,log')
    .option('--json', 'print what was written as JSON')
    .argument('<program...>', 'a script and its arguments, or -m and a module, behind --')
    .action(async (args: string[], options: RecordCommandOptions) =>
      done(await (await import('./commands/record.js')).recordCommand(args, options)),
    )
  program
    .command('events')
    .description("print a trace's events, each request with the stack that it was made under")
    .option('--from <number>', 'the first event', count)
    .option('--to <number>', 'the last event', count)
    .option('--size <bytes>', 'requests for so many bytes', count)
    .option('--address <0x…>', 'calls that were given this address, or gave it')
    .option('--site <file:line>', 'requests with this line in their stack')
    .option('-o, --output <file>', 'write there instead')
    .option('-f, --force', 'replace a file that is there')
    .option('--json', 'print each event as a line of JSON')
    .argument('<trace>', 'a trace')
    .action(async (path: string, options: EventsCommandOptions) =>
      done(await (await import('./commands/events.js')).eventsCommand(path, options)),
    )
  program
    .command('replay')
    .description('make the calls of a trace again and compare every answer')
    .option('--release <release>', 'the release to replay on (default: the one that was recorded)')
    .option(
      '--at <moment>',
      'stop at this moment, and show the statistics there: end (before finalization), peak, mark:NAME, mark:NAME#2, event:N, time:SECONDS',
    )
    .option('--operation <number>', 'stop after this operation, and show the statistics there', count)
    .option('--stats', 'show the statistics at the end')
    .option('--json', 'print the results as JSON')
    .argument('<trace...>', 'traces')
    .action(async (args: string[], options: ReplayCommandOptions) =>
      done(await (await import('./commands/replay.js')).replayCommand(args, options)),
    )
  program
    .command('why')
    .description("what holds a recorded program's memory, in words, and the lines to change")
    .option('--at <moment>', MOMENTS, 'end')
    .option('--top <number>', 'how many sites to show', count, 10)
    .option('--site <file:line>', 'what was made there, with its stacks')
    .option('--arena <0x…>', 'what lies in this arena')
    .option('-o, --output <file>', 'write there instead')
    .option('-f, --force', 'replace a file that is there')
    .option('--json', 'print the answer as JSON: obmalloc.why/1')
    .argument('<trace>', 'a trace')
    .action(async (path: string, options: WhyCommandOptions) =>
      done(await (await import('./commands/why.js')).whyCommand(path, options)),
    )
  program
    .command('report')
    .description('write the page that shows a recording, one HTML file, and print the answer')
    .option('--at <moment>', MOMENTS, 'end')
    .option('--sources <what>', 'which source to put into the page: none, or the lines that stacks name', 'lines')
    .option('-o, --output <file>', 'the page (default: the name of the trace and .html)')
    .option('-f, --force', 'replace a file that is there')
    .option('--json', "print the page's data as JSON")
    .argument('<trace>', 'a trace')
    .action(async (path: string, options: ReportCommandOptions) =>
      done(await (await import('./commands/report.js')).reportCommand(path, options)),
    )
  program
    .command('top')
    .description('print how much memory each site, function, file or size class asked for, and how much it has')
    .option('--at <moment>', MOMENTS, 'end')
    .option('--by <what>', 'site, function, file or class', 'site')
    .option('--sort <column>', 'allocated, freed, live, blocks, held, outside or temporary', 'held')
    .option('--top <number>', 'how many rows to show', count, 20)
    .option('--csv', 'print all rows with commas between')
    .option('-o, --output <file>', 'write there instead')
    .option('-f, --force', 'replace a file that is there')
    .option('--json', 'print all rows as JSON')
    .argument('<trace>', 'a trace')
    .action(async (path: string, options: TopCommandOptions) =>
      done(await (await import('./commands/top.js')).topCommand(path, options)),
    )
  program
    .command('map')
    .description('the arenas at a moment, a line each and a character a pool')
    .option('--at <moment>', MOMENTS, 'end')
    .option('--color <what>', 'fill, class, age or site', 'fill')
    .option('--png <file>', 'draw a picture instead')
    .option('-o, --output <file>', 'write there instead')
    .option('-f, --force', 'replace a file that is there')
    .option('--json', 'print the pools as JSON')
    .argument('<trace>', 'a trace')
    .action(async (path: string, options: MapCommandOptions) =>
      done(await (await import('./commands/map.js')).mapCommand(path, options)),
    )
  program
    .command('what-if')
    .description('try other settings and other allocators on a recording')
    .option('--at <moment>', MOMENTS, 'end')
    .option('--arena <sizes>', 'arenas of these sizes: 256K,1M')
    .option('--pool <sizes>', 'pools of these sizes: 4K,16K')
    .option('--threshold <sizes>', 'pymalloc serves requests up to these sizes: 256,512')
    .option('--release <releases>', 'the rules of these releases: 3.9,3.13')
    .option('--allocator <names>', 'these in place of pymalloc, measured: glibc,jemalloc,mimalloc,tcmalloc')
    .option('--apart <file:line>', 'what this line asked for in a heap of its own')
    .option('-o, --output <file>', 'write the answer there')
    .option('-f, --force', 'replace a file that is there')
    .option('--json', 'print the answer as JSON')
    .argument('<trace>', 'a trace')
    .action(async (path: string, options: WhatIfCommandOptions) =>
      done(await (await import('./commands/what-if.js')).whatIfCommand(path, options)),
    )
  program
    .command('diff')
    .description(
      'what grew from one recording to another, or from one moment of a recording to another (FILE@mark:1 FILE@mark:5)',
    )
    .option('--by <what>', 'site, function, file or class', 'site')
    .option('--top <number>', 'how many rows to show', count, 20)
    .option('--html <file>', 'write a page of the later one, with the difference in it')
    .option('-o, --output <file>', 'write the answer there')
    .option('-f, --force', 'replace a file that is there')
    .option('--json', 'print all rows as JSON: obmalloc.diff/1')
    .argument('<a>', 'a trace, or a trace @ a moment')
    .argument('<b>', 'the later one')
    .action(async (a: string, b: string, options: DiffCommandOptions) =>
      done(await (await import('./commands/diff.js')).diffCommand(a, b, options)),
    )
  program
    .command('budget')
    .description('hold a recording against limits; ends with 1 when one is broken')
    .option('--at <moment>', MOMENTS, 'end')
    .option('--peak <size>', 'most bytes of arenas')
    .option('--held <size>', 'bytes of arenas at the moment')
    .option(
      '--pinned <percent>',
      'most percent of the held bytes that may be pinned (held, but not needed if the blocks lay packed)',
    )
    .option('--growth <size>', 'fail if live memory grows by this much or more from mark to mark')
    .option('--mark <name>', 'the marks for --growth')
    .option('--config <file>', 'limits as JSON: {"peak": "100M", "held": "20M", "pinned": 50, "growth": {"job": "10K"}}')
    .option('--update', 'write what was measured, with the tolerance and room for an arena at least, to the --config file')
    .option('--baseline <trace>', 'no more than this recording had, with the tolerance')
    .option('--tolerance <percent>', 'how much more than measured is allowed', '10')
    .option('--format <format>', 'text, github (annotations) or junit', 'text')
    .option('-o, --output <file>', 'write the answer there')
    .option('-f, --force', 'replace a file that is there')
    .option('--json', 'print the answer as JSON: obmalloc.budget/1')
    .argument('<trace>', 'a trace')
    .action(async (path: string, options: BudgetCommandOptions) =>
      done(await (await import('./commands/budget.js')).budgetCommand(path, options)),
    )
  program
    .command('export')
    .description("write a recording's figures for another tool")
    .requiredOption('--to <format>', 'pprof, speedscope, collapsed, trace-events or csv')
    .option('--at <moment>', MOMENTS, 'end')
    .option('--what <figure>', 'held, live, peak or allocated', 'held')
    .option('-o, --output <file>', 'the file; standard output if none is given')
    .option('-f, --force', 'replace a file that is there')
    .option('--json', 'print what was written as JSON; the file is then to be named')
    .argument('<trace>', 'a trace')
    .action(async (path: string, options: ExportCommandOptions) =>
      done(await (await import('./commands/export.js')).exportCommand(path, options)),
    )
  program
    .command('trim')
    .description('run a program in a CPython (3.10 or later) and give back to the system what it holds and does not use')
    .option(
      '--every <time>',
      'shortest time between two trims (500ms, 30s, 2m); it grows while the program takes the memory back',
      '30s',
    )
    .option('--above <size>', 'only when so much can be given back', '16M')
    .option('--idle', 'also as soon as the program sleeps')
    .option('--asked', 'only where the program asks: sys.audit("obmalloc.trim")')
    .option('--log', 'a line on stderr for each trim')
    .option('--path', 'print the library to preload, for use without this command: OBMALLOC_TRIM=every=30s,log LD_PRELOAD=…')
    .option('--python <path>', 'the CPython (default: python3)')
    .option('-o, --output <file>', 'write what was given back there, as JSON')
    .option('-f, --force', 'replace a file that is there')
    .option('--json', 'print what was given back as JSON')
    .argument('[program...]', 'a script and its arguments, or -m and a module, behind --')
    .action(async (args: string[], options: TrimCommandOptions) =>
      done(await (await import('./commands/trim.js')).trimCommand(args, options)),
    )
  program
    .command('check')
    .description('run a program in a CPython and list the blocks that it frees or reallocates in the wrong domain')
    .option('--python <path>', 'the CPython (default: python3)')
    .option('--json', 'print what was found as JSON')
    .argument('<program...>', 'a script and its arguments, or -m and a module, behind --')
    .action(async (args: string[], options: CheckCommandOptions) =>
      done(await (await import('./commands/check.js')).checkCommand(args, options)),
    )
  return program
}

async function main(): Promise<number> {
  let code = 0
  try {
    const asked = ['-V', '--version'].includes(process.argv[2] ?? '')
    await commandLine(asked ? await versionAndBinding() : number, (result) => (code = result)).parseAsync()
    return code
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2
    if (error instanceof UsageError) return fail(error, 2)
    if (error instanceof TraceError) return fail(error, 3)
    if (error instanceof Error && (error as Error & { code?: string }).code === 'ERR_OUT_OF_RANGE') return fail(error, 2)
    return fail(error, 4)
  }
}

function fail(error: unknown, code: number): number {
  say(`obmalloc: ${error instanceof Error ? error.message : String(error)}`)
  return code
}

removeAtSignals()

// Node would open its debugger's port on this signal.
process.on('SIGUSR1', () => {})

// The reader of the output has closed it, as `head` does: end like a program that SIGPIPE ends. Messages may have the same reader.
for (const stream of [process.stdout, process.stderr])
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(128 + constants.signals.SIGPIPE)
    process.exit(stream === process.stderr ? 4 : fail(error, 4))
  })

void main().then((code) => {
  process.exitCode = code
})
