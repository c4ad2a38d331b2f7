# Every second of many blocks of one size is gone: their pools stay half empty.
blocks = [bytes(100) for _ in range(150_000)]
kept = blocks[::2]
del blocks
print(len(kept), 'kept')
