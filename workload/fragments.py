# Many rows are loaded, and one in a thousand stays: what holds the memory afterwards?
import sys


class Row:
    __slots__ = ('number', 'text')

    def __init__(self, number):
        self.number = number
        self.text = 'row %d' % number


def load_rows(count):
    return [Row(number) for number in range(count)]


kept = []
for job in range(4):
    rows = load_rows(100_000)
    kept += rows[::1000]
    del rows
    sys.audit('obmalloc.mark', 'job')
print(len(kept), 'rows kept')
