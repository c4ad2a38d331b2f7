"""Big strings and buffers: requests far above the threshold, growing and shrinking in place and not."""

import io

text = ""
for number in range(4000):
    text += "%d," % number * (1 + number % 7)
parts = text.split(",")
joined = "|".join(reversed(parts))
buffer = io.StringIO()
for part in parts:
    buffer.write(part)
data = bytearray()
for number in range(2000):
    data += bytes(number % 600)
    if number % 50 == 0:
        del data[number:]
blob = [b"x" * (1 << power) for power in range(22)]
blob = [piece.replace(b"x", b"yz") for piece in blob]
lists = []
for number in range(600):
    grown = []
    for item in range(number):
        grown.append(item)
    lists.append(grown)
    if number % 3 == 0:
        del lists[0][:]
print("strings:", len(joined), len(buffer.getvalue()), len(data), sum(map(len, blob)))
