"""Interpreters that come and go, one after the other and side by side: each does some work.

Without an argument each has an allocator of its own, where the release can do that (3.12 and later); with `shared` all use the main one's.
"""

import sys
import threading

WORK = """
import gc, json
rows = [[n, str(n), bytes(n % 700)] for n in range(4000)]
rows = [row[::-1] for row in rows[::2]]
json.dumps(rows, default=str)
gc.collect()
"""

own = "shared" not in sys.argv[1:]
try:
    import _interpreters as interpreters

    run = getattr(interpreters, "run_string", None) or interpreters.exec

    def create():
        return interpreters.create("isolated" if own else "legacy")

except ImportError:
    import _xxsubinterpreters as interpreters

    run = interpreters.run_string

    def create():
        try:
            return interpreters.create(isolated=own)
        except TypeError:  # 3.8
            return interpreters.create()


def work():
    one = create()
    run(one, WORK)
    interpreters.destroy(one)


def own_work():
    rows = [[n, str(n), bytes(n % 700)] for n in range(10_000)]
    return rows[::2]


kept = []
for _ in range(2):
    work()
    kept.append(own_work())
# Before 3.12 they have one lock, and faults of their own when they are made side by side.
if sys.version_info >= (3, 12):
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    kept.append(own_work())
    for thread in threads:
        thread.join()
print(len(kept))
