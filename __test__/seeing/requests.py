# Requests one after the other, each with a burst of its own, and a bounded log of some of it: arenas are given back, and taken again where they
# were.
import collections

log = collections.deque(maxlen=2000)


class Entry:
    __slots__ = ('when', 'what', 'extra')

    def __init__(self, when, what):
        self.when = when
        self.what = what
        self.extra = {'id': str(when)}


def handle(number):
    body = [{'n': i, 's': 'v%d' % i} for i in range(30_000)]
    for i in range(0, len(body), 60):
        log.append(Entry(number * 100_000 + i, 'saw %s' % body[i]['s']))


for number in range(4):
    handle(number)
