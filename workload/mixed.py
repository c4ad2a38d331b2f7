"""The bundled workload: a mixed program on the standard library, some million allocator calls.

Parses its own library (ast), writes and reads JSON, matches and substitutes (re), defines and uses classes, runs a
small test suite (unittest) and leaves cycles to the collector (gc). Prints one line, the same on every release.
"""

import ast
import collections
import gc
import io
import itertools
import json
import random
import re
import textwrap
import unittest


def documents(count):
    rng = random.Random(20260401)
    for number in range(count):
        yield {
            "id": number,
            "name": "item-%d" % number,
            "tags": [rng.choice("abcdefgh") * rng.randrange(1, 40) for _ in range(rng.randrange(12))],
            "price": rng.random() * 1000,
            "nested": {"depth": {"depth": {"value": rng.randrange(1 << 70)}}},
            "text": " ".join(rng.choice(["spam", "ham", "eggs", "lumberjack"]) for _ in range(rng.randrange(60))),
        }


def use_json():
    text = json.dumps(list(documents(2500)), indent=1)
    back = json.loads(text)
    return sum(len(document["tags"]) for document in back)


def use_ast():
    nodes = 0
    for module in (collections, textwrap, argparse_like()):
        with open(module.__file__, encoding="utf-8") as file:
            tree = ast.parse(file.read())
        nodes += sum(1 for _ in ast.walk(tree))
        compile(tree, module.__file__, "exec")
    return nodes > 5000


def argparse_like():
    import argparse

    return argparse


def use_re():
    text = "\n".join("%05d key_%d = value %d" % (n, n % 97, n * n) for n in range(4000))
    found = re.findall(r"(\d+) (key_\d+) = (\w+) (\d+)", text)
    replaced = re.sub(r"key_(\d+)", lambda match: "KEY-" + match.group(1)[::-1], text)
    return len(found) + replaced.count("KEY-")


class Shape:
    def __init__(self, sides):
        self.sides = sides
        self.parts = {side: [side] * (side % 5) for side in range(sides)}


class Node:
    __slots__ = ("left", "right", "value")

    def __init__(self, value):
        self.value = value
        self.left = self.right = None


def use_classes():
    shapes = [type("Shape%d" % n, (Shape,), {"area": lambda self: self.sides * 2})(n % 13) for n in range(1500)]
    root = Node(0)
    values = list(range(20000))
    random.Random(7).shuffle(values)
    for value in values:
        node = root
        while True:
            branch = "left" if value < node.value else "right"
            below = getattr(node, branch)
            if below is None:
                setattr(node, branch, Node(value))
                break
            node = below
    return sum(shape.area() for shape in shapes)


class Sums(unittest.TestCase):
    def test_sums(self):
        for n in range(200):
            with self.subTest(n=n):
                self.assertEqual(sum(range(n)), n * (n - 1) // 2)

    def test_words(self):
        self.assertEqual(textwrap.wrap("word " * 500, 40), ["word word word word word word word word"] * 62 + ["word word word word"])


def use_unittest():
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Sums)
    result = unittest.TextTestRunner(stream=io.StringIO()).run(suite)
    return result.testsRun - len(result.failures) - len(result.errors)


def use_gc():
    collected = 0
    for _ in range(20):
        for _ in range(3000):
            ring = [[] for _ in range(4)]
            for a, b in itertools.combinations(ring, 2):
                a.append(b)
                b.append(a)
        collected += gc.collect() >= 0
    return collected


def use_buffers():
    rng = random.Random(99)
    queue = collections.deque()
    for _ in range(30000):
        queue.append(bytearray(rng.randrange(3000)))
        if len(queue) > 500:
            queue.popleft().extend(b"tail")
    return len(queue)


if __name__ == "__main__":
    print("workload:", use_json(), use_ast(), use_re(), use_classes(), use_unittest(), use_gc(), use_buffers())
