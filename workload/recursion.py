"""Deep recursion: frames, data-stack chunks, structures nested as deep as the interpreter allows."""

import json
import sys


def down(depth, carried):
    local = [depth, carried, (depth, {"depth": depth})]
    return local[0] if depth == 0 else down(depth - 1, local) + 1


def nest(depth):
    value = None
    for level in range(depth):
        value = [value] if level % 2 else {"level": value}
    return value


class Chain:
    def __init__(self, following):
        self.following = following


sys.setrecursionlimit(20000)
for _ in range(30):
    down(900, None)
text = json.dumps(nest(300))
assert json.loads(text) == nest(300)
for _ in range(5):
    chain = None
    for _ in range(40000):
        chain = Chain(chain)
    while chain is not None:
        chain = chain.following
print("recursion:", len(text))
