# The program imports in the middle of a burst, as many do where they first need it. What is imported lies in an arena or two.
kept = []


def load_rows(count):
    return [{'number': n, 'text': 'row %d' % n} for n in range(count)]


rows = load_rows(30_000)
import argparse

rows += load_rows(30_000)
kept = rows[::2_000]
del rows
print(len(kept), 'kept', argparse.__name__)
