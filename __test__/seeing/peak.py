# The peak is made of temporaries: a list of all squares, summed.
def total(count):
    return sum([n * n for n in range(count)])


print(total(800_000))
