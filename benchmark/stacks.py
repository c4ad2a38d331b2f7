"""What recording costs: user and system time of programs under the recorder, over that without, start-up taken off on either side.

    python3 benchmark/stacks.py [--rounds N] [--tracemalloc] PYTHON...

after a build. Three programs, without stacks, with the innermost frame, and with 64 frames, and if asked for under CPython's own `tracemalloc` with
64 frames, which takes minutes; medians of ratios within a round, in which everything is run in turn, in another order each time.
"""

import argparse
import os
import random
import resource
import statistics
import subprocess
import tempfile

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
RECORDER = os.path.join(ROOT, "target", "release", "libobmalloc_preload.so")
PROGRAMS = {
    "workload/mixed.py": [os.path.join(ROOT, "workload", "mixed.py")],
    "workload/classes.py": [os.path.join(ROOT, "workload", "classes.py")],
    "a service under 40 frames": [os.path.join(ROOT, "benchmark", "service.py"), "20"],
}
TRACEMALLOC = "tracemalloc"
FRAMES = [None, 0, 1, 64]


def seconds(python, arguments, frames, trace):
    environment = dict(os.environ, PYTHONHASHSEED="0", PYTHONDONTWRITEBYTECODE="1")
    if frames == TRACEMALLOC:
        arguments = ["-X", "tracemalloc=64", *arguments]
    elif frames is not None:
        environment.update(LD_PRELOAD=RECORDER, OBMALLOC_TRACE=trace, OBMALLOC_STACKS=str(frames))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([python, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("python", nargs="+")
    parser.add_argument("--tracemalloc", action="store_true")
    options = parser.parse_args()
    kinds = FRAMES + [TRACEMALLOC] * options.tracemalloc
    with tempfile.TemporaryDirectory() as folder:
        trace = os.path.join(folder, "trace")
        for python in options.python:
            for name, arguments in PROGRAMS.items():
                ratios = {frames: [] for frames in kinds[1:]}
                for _ in range(options.rounds):
                    times = {}
                    for frames in random.sample(kinds, len(kinds)):
                        times[frames] = seconds(python, arguments, frames, trace) - seconds(python, ["-c", ""], frames, trace)
                    for frames in ratios:
                        ratios[frames].append(times[frames] / times[None])
                name_of = {frames: "%s frames" % frames for frames in FRAMES} | {TRACEMALLOC: TRACEMALLOC}
                told = ", ".join("%s %.2f" % (name_of[frames], statistics.median(found)) for frames, found in ratios.items())
                print("%s, %s: %s" % (python, name, told), flush=True)


main()
