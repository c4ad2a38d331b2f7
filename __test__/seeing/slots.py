# As frag.py, without a dict for each row. With an argument the survivors are made anew between two collections, as the answer says.
import gc, sys


class Row:
    __slots__ = ('n', 'text')

    def __init__(self, n):
        self.n = n
        self.text = 'row %d' % n


def load_rows(count):
    return [Row(n) for n in range(count)]


def again(row):
    return Row(int(str(row.n)))


rows = load_rows(200_000)
kept = rows[::1000]
del rows
if len(sys.argv) > 1:
    gc.collect()
    kept = [again(row) for row in kept]
    gc.collect()
print(len(kept), 'kept')
