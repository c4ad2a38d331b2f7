"""What recording costs: user and system time of programs under the recorder, over that without, start-up taken off on either side.

    python3 benchmark/stacks.py [--rounds N] [--program NAME] [--tracemalloc] [--memray] PYTHON...

after a build. Three programs, or the one that is named, without stacks, with the innermost frame, and with 64 frames; if asked for under CPython's own
`tracemalloc` with 64 frames, which takes minutes; and under memray, with all that Python's allocators give, where PYTHON has it installed. Medians of
ratios within a round, in which everything is run in turn, in another order each time.
"""

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
RECORDER = os.path.join(ROOT, "target", "release", "libobmalloc_preload.so")
PROGRAMS = {
    "workload/mixed.py": [os.path.join(ROOT, "workload", "mixed.py")],
    "workload/classes.py": [os.path.join(ROOT, "workload", "classes.py")],
    "a service under 40 frames": [os.path.join(ROOT, "benchmark", "service.py"), "20"],
}
TRACEMALLOC = "tracemalloc"
MEMRAY = "memray"
FRAMES = [None, 0, 1, 64]


def seconds(python, arguments, frames, trace):
    environment = dict(os.environ, PYTHONHASHSEED="0", PYTHONDONTWRITEBYTECODE="1")
    if frames == TRACEMALLOC:
        arguments = ["-X", "tracemalloc=64", *arguments]
    elif frames == MEMRAY:
        arguments = ["-m", "memray", "run", "--quiet", "--force", "--trace-python-allocators", "--output", trace, *arguments]
    elif frames is not None:
        environment.update(LD_PRELOAD=RECORDER, OBMALLOC_TRACE=trace, OBMALLOC_STACKS=str(frames))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([python, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def has_memray(python):
    found = subprocess.run([python, "-c", "import memray"], stderr=subprocess.DEVNULL).returncode == 0
    if not found:
        print("%s: memray is not installed, and left out" % python, file=sys.stderr)
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("python", nargs="+")
    parser.add_argument("--tracemalloc", action="store_true")
    parser.add_argument("--memray", action="store_true")
    parser.add_argument("--program", choices=PROGRAMS, help="only this one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trace = os.path.join(folder, "trace")
        for python in options.python:
            kinds = FRAMES + [TRACEMALLOC] * options.tracemalloc + [MEMRAY] * (options.memray and has_memray(python))
            for name, arguments in PROGRAMS.items():
                if options.program not in (None, name):
                    continue
                ratios = {frames: [] for frames in kinds[1:]}
                for _ in range(options.rounds):
                    times = {}
                    for frames in random.sample(kinds, len(kinds)):
                        times[frames] = seconds(python, arguments, frames, trace) - seconds(python, ["-c", "pass"], frames, trace)
                    for frames in ratios:
                        ratios[frames].append(times[frames] / times[None])
                name_of = {frames: "%s frames" % frames for frames in FRAMES} | {kind: kind for kind in (TRACEMALLOC, MEMRAY)}
                told = ", ".join("%s %.2f" % (name_of[frames], statistics.median(found)) for frames, found in ratios.items())
                print("%s, %s: %s" % (python, name, told), flush=True)


main()
