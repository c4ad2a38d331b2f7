"""What the golden traces hold: start-up, a little of everything, a few arenas taken and given back, shutdown."""

import ast

kept = [ast.parse("x = [%d, {}]" % number) for number in range(40)]
for _ in range(2):
    blocks = [bytes(460) for _ in range(7000)]
    del blocks[::2]
    kept.append({number: [number] for number in range(400)})
    del blocks
grown = b""
for number in range(300):
    grown += b"%d" % number
cycle = [kept]
cycle.append(cycle)
