# Arenas are taken and given back again and again (python/cpython#115429). One empty arena is kept; each burst needs more than that.
blocks = [bytes(400) for _ in range(40_000)]
for _ in range(200):
    more = [bytes(400) for _ in range(4_700)]
    del more
