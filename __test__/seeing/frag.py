# Many rows; every thousandth is kept: what holds the memory afterwards?
import sys


class Row:
    def __init__(self, n):
        self.n = n
        self.text = 'row %d' % n


def load_rows(count):
    return [Row(n) for n in range(count)]


rows = load_rows(200_000)
kept = rows[::1000]
del rows
sys.audit('obmalloc.mark', 'after')
print(len(kept), 'kept')
