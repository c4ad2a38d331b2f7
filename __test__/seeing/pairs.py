# Of every 200th row all texts are kept, and its one number: few blocks of one line lie in every arena with the many of another. With an
# argument the survivors are made anew between two collections, as the answer says.
import gc, sys


def load_rows(count):
    texts, numbers = [], []
    for n in range(count):
        texts += ['text %d of row %d' % (i, n) for i in range(30)]
        numbers.append(1000 + n)
    return texts, numbers


texts, numbers = load_rows(6_000)
kept = [text for n in range(0, 6_000, 200) for text in texts[30 * n : 30 * n + 30]]
kept_numbers = numbers[::200]
del texts, numbers
if len(sys.argv) > 1:
    gc.collect()
    kept = [text[:4] + text[4:] for text in kept]
    kept_numbers = [int(str(number)) for number in kept_numbers]
    gc.collect()
print(len(kept), len(kept_numbers), 'kept')
