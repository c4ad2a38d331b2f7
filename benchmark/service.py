"""A service-like program: handles requests (JSON, regular expressions, objects, strings) at the bottom of many frames."""
import json, re, sys
class Item:
    def __init__(self, name, price, tags):
        self.name = name; self.price = price; self.tags = tags
    def total(self):
        return self.price * len(self.tags)
WORD = re.compile(r"(\w+)-(\d+)")
def parse(text):
    document = json.loads(text)
    return [Item(row["name"], row["price"], list(row["tags"])) for row in document["rows"]]
def render(items):
    lines = []
    for item in items:
        match = WORD.match(item.name)
        lines.append("%s %s %.2f %s" % (match.group(1), match.group(2), item.total(), ",".join(sorted(item.tags))))
    return "\n".join(lines)
def handle(number):
    text = json.dumps({"rows": [{"name": "item-%d" % (number + n), "price": n * 1.5, "tags": ["a%d" % n, "b", "c"]} for n in range(20)]})
    return len(render(parse(text)))
def layered(depth, number):
    if depth == 0:
        return sum(handle(number + n) for n in range(200))
    return layered(depth - 1, number)
total = 0
for number in range(int(sys.argv[1]) if len(sys.argv) > 1 else 20):
    total += layered(36, number)
print("service:", total)
