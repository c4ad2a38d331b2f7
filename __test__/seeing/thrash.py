# An arena is taken and given back again and again (python/cpython#115429).
blocks = [bytes(400) for _ in range(40_000)]
for _ in range(400):
    more = [bytes(400) for _ in range(3_000)]
    del more
