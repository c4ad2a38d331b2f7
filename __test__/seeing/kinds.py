# As slots.py, with rows of types of which CPython keeps dead ones for new objects. With a second argument the survivors are made anew
# after the burst and a collection follows, as the answer says.
import gc
import sys

KINDS = {
    'tuples': lambda n: (n, 'row %d' % n),
    'lists': lambda n: [n, 'row %d' % n],
    'dicts': lambda n: {0: n, 1: 'row %d' % n},
}
make = KINDS[sys.argv[1]]


def load_rows(count):
    return [make(n) for n in range(count)]


def again(row):
    return make(int(str(row[0])))


rows = load_rows(60_000)
kept = rows[::100]
del rows
if len(sys.argv) > 2:
    kept = [again(row) for row in kept]
    gc.collect()
print(len(kept), 'kept')
