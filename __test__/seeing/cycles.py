# Each job leaves a cycle, and no collection comes to them before the first mark.
import gc
import sys

gc.disable()


class Job:
    def __init__(self, number):
        self.me = self
        self.items = ['item %d' % item for item in range(20)]


for number in range(6_000):
    Job(number)
sys.audit('obmalloc.mark', 'before')
gc.collect()
sys.audit('obmalloc.mark', 'after')
