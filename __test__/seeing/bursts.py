# One burst after the other, and each leaves two of its rows. Arenas are given back between them, and taken anew.
kept = []


def load_rows(count):
    return [{'number': n, 'text': 'row %d' % n} for n in range(count)]


def answer(number):
    rows = load_rows(20_000)
    kept.append(rows[number])
    kept.append(rows[number * 1009 % 20_000])


for number in range(8):
    answer(number)
print(len(kept), 'kept')
