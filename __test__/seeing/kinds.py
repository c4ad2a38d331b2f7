# As slots.py, with rows of types whose dead objects CPython keeps for new ones. With a second argument the survivors are made anew
# after the burst, between two collections, as the answer says.
import gc
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
kept = rows[::100]
del rows
if len(sys.argv) > 2:
    gc.collect()
    kept = [again(row) for row in kept]
    gc.collect()
print(len(kept), 'kept')
