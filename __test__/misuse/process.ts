/** Section G: threads, environments, the process. What needs these is played where they are. */

import type { Row } from './rows.ts'

const threads = '../crates/obmalloc/tests/threads.rs'
const record = '../crates/obmalloc-preload/tests/record.rs'
const processes = '../crates/obmalloc-preload/tests/record_processes.rs'
const workers = 'workers.spec.ts'

export const endings: Row[] = [
  { number: 116, what: 'a heap that threads share', elsewhere: ['../crates/obmalloc/src/lib.rs', 'compile_fail,E0277'] },
  {
    number: 117,
    what: 'the raw domain from eight threads',
    elsewhere: [threads, 'raw_domain_serves_eight_threads_which_free_each_others_blocks'],
  },
  {
    number: 118,
    what: 'interpreters with a lock and a pymalloc of their own',
    elsewhere: [record, 'interpreters_with_allocators_of_their_own_go_on_under_the_recorder'],
  },
  {
    number: 119,
    what: 'hooks that come after the first blocks',
    elsewhere: ['../crates/obmalloc/tests/debug.rs', 'blocks_older_than_the_hooks_are_freed_without_a_look'],
  },
  { number: 120, what: 'hooks that CPython replaces', elsewhere: [record, 'replaced_allocators_are_reported'] },
  {
    number: 121,
    what: 'a free-threaded CPython',
    elsewhere: [processes, 'what_cannot_be_recorded_or_checked_is_said_and_left_alone'],
  },
  {
    number: 122,
    what: 'a fork while others allocate',
    elsewhere: [threads, 'child_of_a_fork_goes_on_with_its_heaps_while_others_allocate'],
  },
  {
    number: 123,
    what: 'workers that load the addon and end by themselves',
    elsewhere: [workers, 'workers that end by themselves, with live heaps, end well'],
  },
  {
    number: 124,
    what: 'workers that are ended in the middle of something',
    elsewhere: [workers, 'workers that are ended in the middle of something take nothing with them'],
  },
  { number: 125, what: 'a long call whose worker is ended', elsewhere: [workers, 'a worker is ended in the middle of'] },
  { number: 126, what: 'the end with live heaps', elsewhere: [workers, 'naturally, with live heaps'] },
  { number: 127, what: 'every other end of a process', elsewhere: [workers, 'by SIGKILL in a hook'] },
  {
    number: 128,
    what: 'a heap that is collected while a script gives its arenas',
    elsewhere: ['close.spec.ts', 'a heap that is collected while a script gives its arenas is given back'],
  },
  {
    number: 129,
    what: 'the addon loaded twice',
    elsewhere: [workers, 'two copies of the addon, and two of the face, know nothing of each other'],
  },
  {
    number: 130,
    what: 'what all threads share, when one of them ends',
    elsewhere: ['close.spec.ts', 'a heap of another worker is told from a stranger'],
  },
  {
    number: 131,
    what: 'thread-local storage at the end of its thread',
    elsewhere: [threads, 'heap_in_thread_local_storage_goes_with_its_thread'],
  },
  { number: 132, what: 'signal handlers', elsewhere: ['../SECURITY.md', 'Calls from signal handlers, which are not supported'] },
  { number: 133, what: 'Bun and Deno', elsewhere: ['runtimes.spec.ts', 'loads the addon, works with it and ends'] },
]
