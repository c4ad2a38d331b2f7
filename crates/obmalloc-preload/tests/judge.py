"""Runs a program under tracemalloc, and says what that knows of the blocks that it is then asked for.

judge.py FRAMES PROGRAM: when the program is done this process forks, so that the recorder brings its trace up to date, and prints a line. Then
it reads the name of a file of addresses and sizes, two hexadecimal numbers a line, and prints for each that tracemalloc knows the address, the type of
the object there and the frames, innermost first, separated by tabs.
"""

import ctypes
import gc
import os
import runpy
import sys
import tracemalloc

frames, program = int(sys.argv[1]), sys.argv[2]
sys.argv = [program]
traceback = ctypes.pythonapi._PyTraceMalloc_GetTraceback
traceback.argtypes, traceback.restype = (ctypes.c_uint, ctypes.c_size_t), ctypes.py_object
tracemalloc.start(frames)
kept = runpy.run_path(program, run_name="__main__")
sys.stdout.flush()
if os.fork() == 0:
    os._exit(0)
os.wait()
print("ready", flush=True)
gc.disable()
with open(sys.stdin.readline().strip()) as file:
    blocks = [[int(word, 16) for word in line.split()] for line in file]


def all_types(base, found):
    for kind in type.__subclasses__(base):
        if id(kind) not in found:
            found[id(kind)] = kind.__name__
            all_types(kind, found)
    return found


types = all_types(object, {})


def type_at(address, size):
    # The type is an object's second word; one that the collector knows lies behind two words of its own, some behind two more.
    for word in (8, 24, 40):
        name = word < size and types.get(ctypes.c_size_t.from_address(address + word).value)
        if name:
            return name
    return "-"


for address, size in blocks:
    known = traceback(0, address)
    if known:
        print("%x" % address, type_at(address, size), *("%s:%d" % frame for frame in known), sep="\t")
sys.stdout.flush()
# What finalization would free is still to be seen as it is.
os._exit(0)
