"""A server under load while it is trimmed, and one that grows and shrinks for long, beside the same server as it is.

    python3 benchmark/server.py load [--rounds N] [--seconds S] PYTHON
    python3 benchmark/server.py long [--minutes M] PYTHON

after a build. It keeps sessions, and answers requests for them. Every answer is checked against what the client put there.

load: rounds in which the server as it is and the trimmed one run in turn, in another order each time; requests a second, the slowest 1 %, and user
and system time of the server for each request, as medians of ratios within a round. The server has one processor for itself, its clients another: what
the trimmer's thread does takes the server's time, and nothing else does. On a machine where the same server differs by a tenth from round to round, a
median of ratios does not tell 1 %. So what the trimmer costs is counted, too: its thread's share of the server's time, and faults for a request.
long: both at once, from two to forty thousand sessions more and back to nearly none of these, again and again, with some requests a second in between;
resident MB at the most and once they are gone.
"""

import argparse
import http.client
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
TRIM = {"LD_PRELOAD": os.path.join(ROOT, "target", "release", "libobmalloc_preload.so"), "OBMALLOC_TRIM": "every=1s,above=1M,idle"}
SESSIONS = {}
# Sessions that stay, of the server under load.
STEADY = 4_000
PROCESSORS = sorted(os.sched_getaffinity(0))
# The number of the trimmer's thread, once it is known.
TRIMMER = []


def session(key, version):
    """What the server keeps, and the client knows without asking."""
    return {"key": key, "tags": ["tag-%d" % (key + n) for n in range(12)], "rows": [{"n": n, "v": version * n / 3} for n in range(8)]}


class Handler(BaseHTTPRequestHandler):
    """`GET /what/number/…` calls the method of that name, and answers with what it returns, as JSON."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        what, *numbers = self.path.split("/")[1:]
        body = json.dumps(getattr(self, what)(*map(int, numbers))).encode()
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    def read(self, key):
        return SESSIONS.get(key)

    def fill(self, first, end, version):
        for key in range(first, end):
            SESSIONS[key] = json.loads(json.dumps(session(key, version)))

    def drop(self, first, end, kept):
        """All sessions between go, but one of so many."""
        for key in range(first, end):
            if key % kept:
                SESSIONS.pop(key, None)

    def seen(self):
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        used = resource.getrusage(resource.RUSAGE_SELF)
        if not TRIMMER:
            # Python did not make its thread.
            TRIMMER.extend(set(map(int, os.listdir("/proc/self/task"))) - {thread.native_id for thread in threading.enumerate()})
        trimmer = 0
        for task in TRIMMER:
            with open("/proc/self/task/%d/schedstat" % task) as file:
                trimmer += int(file.read().split()[0]) / 1e9
        time = used.ru_utime + used.ru_stime
        return {"resident": pages * resource.getpagesize() / 1e6, "time": time, "faults": used.ru_minflt, "trimmer": trimmer}

    def log_message(self, *_):
        pass


class Server:
    """A server process, and what the client has put into it."""

    def __init__(self, python, environment, processor=None):
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("OBMALLOC", "PYTHONMALLOC"))}
        command = [python, os.path.abspath(__file__), "serve"]
        self.process = subprocess.Popen(command, env={**kept, **environment}, stdout=subprocess.PIPE, text=True)
        if processor is not None:
            os.sched_setaffinity(self.process.pid, {processor})
        self.port = int(self.process.stdout.readline())
        self.versions = {}
        self.ask = self.connection()

    def connection(self):
        """A function that asks the server, over a connection of its own."""
        connected = http.client.HTTPConnection("127.0.0.1", self.port)

        def ask(*path):
            connected.request("GET", "/" + "/".join(map(str, path)))
            return json.loads(connected.getresponse().read())

        return ask

    def fill(self, first, end, version):
        self.ask("fill", first, end, version)
        self.versions.update(dict.fromkeys(range(first, end), version))

    def drop(self, first, end, kept):
        self.ask("drop", first, end, kept)
        for key in range(first, end):
            if key % kept:
                self.versions.pop(key, None)

    def check(self, ask, key):
        version = self.versions.get(key)
        if ask("read", key) != (None if version is None else session(key, version)):
            raise SystemExit("session %d is not what was put there" % key)

    def end(self):
        self.process.kill()
        self.process.wait()


def loaded(python, environment, seconds):
    """
    Requests a second, the slowest 1 % in seconds, the server's time for a request, resident MB at the end, faults for a request, and the trimmer's
    share of the server's time.
    """
    server = Server(python, environment, PROCESSORS[0])
    server.fill(0, STEADY, 1)
    times, stop = [], time.monotonic() + seconds
    before = server.ask("seen")

    def client(seed):
        chance, ask = random.Random(seed), server.connection()
        while time.monotonic() < stop:
            begin = time.perf_counter()
            server.check(ask, chance.randrange(STEADY))
            times.append(time.perf_counter() - begin)

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(2)]
    for thread in clients:
        thread.start()
    # Others come and go, so that there is something to trim.
    for turn in range(seconds):
        for first in range(STEADY, STEADY + 6_000, 100):
            server.ask("fill", first, first + 100, turn)
        server.ask("drop", STEADY, STEADY + 6_000, 500)
        time.sleep(max(0, stop - seconds + turn + 1 - time.monotonic()))
    for thread in clients:
        thread.join()
    after = server.ask("seen")
    server.end()
    times.sort()
    count = len(times)
    took, faults, trimmer = (after[part] - before[part] for part in ("time", "faults", "trimmer"))
    return count / seconds, times[count * 99 // 100], took / count, after["resident"], faults / count, trimmer / took


def load(python, rounds, seconds):
    os.sched_setaffinity(0, {PROCESSORS[-1]})
    found = {"as it is": [], "trimmed": []}
    for _ in range(rounds):
        for name in random.sample(sorted(found), 2):
            found[name].append(loaded(python, TRIM if name == "trimmed" else {}, seconds))
        print({name: ["%.4g" % part for part in runs[-1]] for name, runs in found.items()}, file=sys.stderr, flush=True)
    titles = ["requests a second", "slowest 1 %", "user and system time for a request", "resident memory", "faults for a request"]
    for part, title in enumerate(titles):
        ratios = sorted(trimmed[part] / plain[part] for trimmed, plain in zip(found["trimmed"], found["as it is"]))
        print("%-36s %.3f (%.3f to %.3f)" % (title, statistics.median(ratios), ratios[0], ratios[-1]))
    shares = sorted(run[-1] for run in found["trimmed"])
    print("%-36s %.4f (%.4f to %.4f)" % ("the trimmer's share of the time", statistics.median(shares), shares[0], shares[-1]))


def long(python, minutes):
    servers = {"as it is": Server(python, {}), "trimmed": Server(python, TRIM)}
    chance, begin, turn, top = random.Random(1), time.monotonic(), 0, 0
    print("minute  sessions  " + "  ".join("%s: most, then (MB)" % name for name in servers), flush=True)
    while time.monotonic() < begin + 60 * minutes:
        turn += 1
        # What is kept of each turn goes after ten others.
        first, top = turn % 10 * 100_000, chance.randrange(2_000, 40_000)
        line = []
        for server in servers.values():
            server.drop(first, first + 100_000, 100_000)
            for key in range(first, first + top, 1_000):
                server.fill(key, key + 1_000, turn)
            most = server.ask("seen")["resident"]
            server.drop(first, first + top, 200)
            line.append(most)
        for _ in range(100):
            time.sleep(0.05)
            for server in servers.values():
                server.check(server.ask, chance.choice(sorted(server.versions)) if chance.random() < 0.5 else chance.randrange(1_000_000))
        seen = [server.ask("seen")["resident"] for server in servers.values()]
        counts = {len(server.versions) for server in servers.values()}
        ends = "  ".join("%6.1f %6.1f" % pair for pair in zip(line, seen))
        print("%6.1f  %8d  %s" % ((time.monotonic() - begin) / 60, counts.pop(), ends), flush=True)
    for name, server in servers.items():
        for key in list(server.versions):
            server.check(server.ask, key)
        print("%s: %d sessions read at the end, each as it was put" % (name, len(server.versions)))
        server.end()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["load", "long", "serve"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("python", nargs="?", default=sys.executable)
    options = parser.parse_intermixed_args()
    if options.mode == "load":
        load(options.python, options.rounds, options.seconds)
    elif options.mode == "long":
        long(options.python, options.minutes)
    else:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        print(server.server_port, flush=True)
        server.serve_forever()


main()
