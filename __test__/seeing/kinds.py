# As slots.py, with rows of types whose dead objects CPython keeps for new ones. With a second argument the survivors are made anew
# after the burst, between two collections, as the answer says. With `dead` none survives, and what CPython keeps lies anywhere among them;
# with `collected` as well, until a collection.
import gc
import random
import sys


class Row:
    def __init__(self, n):
        self.n = n
        self.text = 'row %d' % n

    def __getitem__(self, _):
        return self.n


KINDS = {
    'tuples': lambda n: (n, 'row %d' % n),
    'lists': lambda n: [n, 'row %d' % n],
    'dicts': lambda n: {0: n, 1: 'row %d' % n},
    'objects': Row,
    'floats': lambda n: (float(n),),
}
make = KINDS[sys.argv[1]]


def load_rows(count):
    return [make(n) for n in range(count)]


def again(row):
    return make(int(str(int(row[0]))))


rows = load_rows(60_000)
if sys.argv[-1] in ('dead', 'collected'):
    random.Random(1).shuffle(rows)
    while rows:
        rows.pop()
kept = rows[::100]
del rows
if sys.argv[-1] == 'collected':
    gc.collect()
if sys.argv[-1] == 'anew':
    gc.collect()
    kept = [again(row) for row in kept]
    gc.collect()
print(len(kept), 'kept')
