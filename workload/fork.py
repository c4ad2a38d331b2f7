"""Forks: children that go on with the parent's heap, and a grandchild."""

import os
import sys

kept = [{"number": number, "text": "x" * (number % 300)} for number in range(20000)]


def change(seed):
    del kept[seed::3]
    kept.extend([seed] * 5 for _ in range(3000))
    return [str(number) * 3 for number in range(5000)]


children = []
for seed in range(2):
    change(seed)
    child = os.fork()
    if child == 0:
        extra = change(seed + 1)
        if seed == 1:
            grandchild = os.fork()
            if grandchild == 0:
                change(2)
                sys.exit(0)
            assert os.waitpid(grandchild, 0)[1] == 0
        sys.exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
print("fork:", len(kept))
