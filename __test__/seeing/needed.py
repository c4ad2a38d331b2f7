# Nothing is wrong: what is held is in use.
table = {n: str(n) for n in range(180_000)}
print(len(table))
