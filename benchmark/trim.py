"""What `obmalloc trim` gives back and costs, beside CPython as it is and other allocators in its place.

    python3 benchmark/trim.py [--rounds N] [--program NAME] PYTHON...

after a build. Programs of benchmark/fragmenting.py; resident MB after freeing, then user and system time and minor faults over those of CPython
as it is (with the same pause, where there is one), medians of ratios within a round, in which everything is run in turn, in another order each time.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from fragmenting import PROGRAMS  # noqa: E402

LIBRARY = os.path.join(ROOT, "target", "release", "libobmalloc_preload.so")
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
JEMALLOC = {"LD_PRELOAD": LIBRARIES + "/libjemalloc.so.2", "PYTHONMALLOC": "malloc"}
PLAIN = "CPython as it is"
PAUSED = "as it is, with the pause"
CONFIGURATIONS = {
    PLAIN: {},
    PAUSED: {"BENCHMARK_PAUSE": "2"},
    "trim, asked": {"LD_PRELOAD": LIBRARY, "OBMALLOC_TRIM": "asked"},
    "trim by itself": {"LD_PRELOAD": LIBRARY, "OBMALLOC_TRIM": "every=1s,above=1M,idle", "BENCHMARK_PAUSE": "2"},
    "malloc_trim alone": {"BENCHMARK_MALLOC_TRIM": "1"},
    "jemalloc, decay 0": {**JEMALLOC, "MALLOC_CONF": "dirty_decay_ms:0,muzzy_decay_ms:0"},
    "jemalloc, background, 5 s": {**JEMALLOC, "MALLOC_CONF": "background_thread:true,dirty_decay_ms:5000,muzzy_decay_ms:0"},
    "mimalloc, purge 0": {"LD_PRELOAD": LIBRARIES + "/libmimalloc.so.2", "PYTHONMALLOC": "malloc", "MIMALLOC_PURGE_DELAY": "0", "MIMALLOC_RESET_DELAY": "0"},
    "PYTHONMALLOC=mimalloc": {"PYTHONMALLOC": "mimalloc"},
}


def run(python, program, configuration):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OBMALLOC", "PYTHONMALLOC"))}
    environment.update(PYTHONHASHSEED="0", PYTHONDONTWRITEBYTECODE="1", **configuration)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [python, os.path.join(ROOT, "benchmark", "fragmenting.py"), program]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(done.stdout)
    return found["after"], after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, found["faults"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--program", action="append", help="only this program (may be repeated)")
    parser.add_argument("--only", action="append", help="only configurations with this in their name, beside CPython as it is")
    parser.add_argument("python", nargs="+")
    options = parser.parse_args()
    for python in options.python:
        version = subprocess.check_output([python, "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"], text=True).strip()
        names = [name for name in CONFIGURATIONS if name != "PYTHONMALLOC=mimalloc" or int(version.split(".")[1]) >= 13]
        if options.only:
            names = [PLAIN, PAUSED] + [name for name in names if any(part in name for part in options.only) and name not in (PLAIN, PAUSED)]
        for program in options.program or PROGRAMS:
            found = {name: [] for name in names}
            for _ in range(options.rounds):
                for name in random.sample(names, len(names)):
                    found[name].append(run(python, program, CONFIGURATIONS[name]))
            print("%s, %s" % (version, program))
            for name, runs in found.items():
                after = [round(statistics.median(step)) for step in zip(*(run[0] for run in runs))]
                beside = found[PAUSED if "BENCHMARK_PAUSE" in CONFIGURATIONS[name] else PLAIN]
                ratio = lambda part: statistics.median(run[part] / plain[part] for run, plain in zip(runs, beside))
                print("  %-28s %-36s time %.3f  faults %.2f" % (name, " ".join(map(str, after)) + " MB", ratio(1), ratio(2)), flush=True)


main()
