"""Threads: objects made in one and freed in another, and raw calls from threads that do not hold the GIL."""

import hashlib
import queue
import threading
import zlib

work, done = queue.Queue(64), queue.Queue()


def worker():
    while True:
        item = work.get()
        if item is None:
            return
        digest = hashlib.sha256(item * 50).hexdigest()
        done.put((digest, zlib.compress(item * 200), {index: digest[index:] for index in range(20)}))


threads = [threading.Thread(target=worker) for _ in range(6)]
for thread in threads:
    thread.start()
for number in range(3000):
    work.put(b"%d" % number)
for _ in threads:
    work.put(None)
for thread in threads:
    thread.join()
short_lived = [threading.Thread(target=lambda: [object() for _ in range(50)]) for _ in range(200)]
for thread in short_lived:
    thread.start()
for thread in short_lived:
    thread.join()
print("threads:", done.qsize())
