"""Programs that free nearly all of what they have, and cannot give it back: `python3 benchmark/fragmenting.py NAME`. Each prints the
resident MB after freeing, and minor faults. With BENCHMARK_MALLOC_TRIM set `malloc_trim` is called after freeing; where the trimmer is loaded it
is asked for a trim, unless BENCHMARK_PAUSE gives seconds to sleep instead."""

import ctypes
import json
import os
import random
import resource
import sys
import tempfile
import time


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


def freed():
    """All that can be freed has been."""
    if "BENCHMARK_PAUSE" in os.environ:
        time.sleep(float(os.environ["BENCHMARK_PAUSE"]))
    else:
        sys.audit("obmalloc.trim")
    if "BENCHMARK_MALLOC_TRIM" in os.environ:
        ctypes.CDLL(None).malloc_trim(0)
    return round(resident())


def tuples(every):
    return [(n, n + 1) for n in range(1_000_000)][::every]


def documents():
    text = json.dumps([{"id": n, "name": "n%d" % n, "tags": ["a", "b%d" % n], "at": n / 3} for n in range(4)])
    return [json.loads(text) for _ in range(30_000)][::500]


def blobs():
    chance = random.Random(1)
    return [bytes(chance.randrange(600, 30_000)) for _ in range(15_000)][::50]


def cache():
    chance, kept = random.Random(2), {}
    for turn in range(400_000):
        size = 40 + turn // 1000 + chance.randrange(60)
        kept[turn] = "x" * size
        if len(kept) > 20_000:
            del kept[next(iter(kept))]
    return kept


class Row:
    def __init__(self, n):
        self.id, self.name, self.values = n, "row %d" % n, [n, n * 0.5]


def rows():
    return [Row(n) for n in range(300_000)][::1000]


def words():
    counts = {}
    for n in range(300_000):
        counts.setdefault("word-%d" % n, []).append(n)
    return {word: found for word, found in counts.items() if found[0] % 1000 == 0}


def result(n):
    return {
        "user": {"id": n, "name": "user number %d" % n, "email": "user%d@example.org" % n},
        "scores": [n / 3, n / 7, n / 11, n],
        "tags": ["t%d" % (n + tag) for tag in range(4)],
        "text": "some words of number %d, " % n * 3,
    }


def worker(jobs=6):
    """Parses a file with 31 MB of JSON for each job, and keeps one result in 500."""
    kept, after = [], []
    with tempfile.TemporaryFile("w+") as file:
        file.write("[" + ", ".join(json.dumps(result(n)) for n in range(106_000)) + "]")
        for _ in range(jobs):
            file.seek(0)
            kept.append(json.load(file)[::500])
            after.append(freed())
    return after


def nothing():
    """A program that has nothing to give back: it computes, and what it allocates is used again at once."""
    kept = [(n, str(n)) for n in range(200_000)]
    total = 0
    for turn in range(60):
        total += sum(len(text) + n % 7 for n, text in kept)
        total += len(json.dumps([{"n": n, "t": "x" * (n % 40)} for n in range(4_000)]))
    return total


PROGRAMS = {
    "every 1000th of a million tuples": lambda: tuples(1000),
    "every 100th": lambda: tuples(100),
    "every 500th of 30,000 JSON documents": documents,
    "bytes of 0.6 to 30 KB, 1 of 50": blobs,
    "cache whose sizes drift": cache,
    "every 1000th of 300,000 objects": rows,
    "words that are counted": words,
    "worker": worker,
    "nothing to give back": nothing,
}

if __name__ == "__main__":
    name = sys.argv[1]
    kept = PROGRAMS[name]()
    after = kept if name == "worker" else [freed()]
    print(json.dumps({"after": after, "faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt}))
