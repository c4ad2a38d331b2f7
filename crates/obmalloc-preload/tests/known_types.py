"""Makes a mark, and writes which objects the collector reached there: a line for each, with the address of its block and its type.

usage: known_types.py FILE
"""
import gc
import sys

PRE_HEADER = 1 << 3 | 1 << 4 if sys.version_info >= (3, 11) else 0
HAVE_GC = 1 << 14


class Plain:
    def __init__(self, number):
        self.number = number
        self.text = "text %d" % number


class Slots:
    __slots__ = ("number", "next")

    def __init__(self, number):
        self.number = number
        self.next = None


class Meta(type):
    pass


class Odd(dict, metaclass=Meta):
    class Inner(tuple):
        pass


Named = type("Nämed", (list,), {"__module__": "größer"})
Nowhere = type("Nowhere", (), {"__module__": 7})


def before_all():
    """The mark at which only the program itself holds the objects."""
    sys.audit("obmalloc.mark", "before")


def numbers():
    for number in range(10**9):
        yield number + 10**6


kept = [
    [Plain(n) for n in range(1000)],
    [Slots(n + 10**6) for n in range(1000)],
    {"key %d" % n: n * 1.5 for n in range(1000)},
    {n + 10**6: (n + 10**7, "a %d" % n, (n + 10**8, b"%d" % n)) for n in range(1000)},
    {frozenset([n + 0.5]): complex(n) for n in range(100)},
    [Odd({"odd %d" % n: Odd.Inner([n + 10**9])}) for n in range(100)],
    [Named([str(n)]) for n in range(100)],
    [Nowhere() for n in range(100)],
    [lambda n=n: n for n in range(10**6, 10**6 + 100)],
    [numbers() for n in range(100)],
    [type("Made%d" % n, (), {"attribute": n + 10**6}) for n in range(50)],
    tuple(n + 10**7 for n in range(1000)),
    set("element %d" % n for n in range(1000)),
    [compile("def f%d(a): return a + %d, 'text %d'" % (n, n + 10**6, n), "f%d.py" % n, "exec") for n in range(100)],
]
for generator in kept[9]:
    next(generator)

gc.collect()
gc.freeze()
later = [Plain(n) for n in range(100)]
CODE = type(before_all.__code__)


def all_objects():
    """Every object that the collector comes to, each once, and kept alive."""
    found, seen = [], set()
    waiting = gc.get_objects() + [later]
    waiting += kept
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or thing is seen or thing is found or thing is waiting:
            continue
        seen.add(id(thing))
        found.append(thing)
        waiting += gc.get_referents(thing)
        if isinstance(thing, dict):
            waiting += list(dict.keys(thing))
        if isinstance(thing, CODE):
            waiting += [thing.co_consts, thing.co_names, thing.co_filename, thing.co_name]
            # Later ones make these anew when they are asked for.
            if sys.version_info < (3, 11):
                waiting += [thing.co_code, thing.co_varnames, thing.co_freevars, thing.co_cellvars]
    return found


def name(kind):
    module, qualified = type.__dict__["__module__"].__get__(kind), type.__dict__["__qualname__"].__get__(kind)
    return qualified if module == "builtins" or not isinstance(module, str) else module + "." + qualified


def before(thing):
    flags = type(thing).__flags__
    if isinstance(thing, type):
        return 16 if thing.__flags__ & 1 << 9 else 0
    return (16 if flags & HAVE_GC else 0) + (16 if flags & PRE_HEADER else 0)


before_all()
objects = all_objects()
sys.audit("obmalloc.mark", "objects")
with open(sys.argv[1], "w", encoding="utf-8") as file:
    for thing in objects:
        file.write("%x %s\n" % (id(thing) - before(thing), name(type(thing))))
