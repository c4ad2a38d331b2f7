"""Calls functions of the planted library: plant.py LIBRARY NAME:SIZE,SIZE… …, and says what they gave if it is not 1."""

import ctypes
import sys

library = ctypes.PyDLL(sys.argv[1])
for plant in sys.argv[2:]:
    name, _, sizes = plant.partition(":")
    function = getattr(library, name)
    function.argtypes = [ctypes.c_size_t]
    for size in sizes.split(","):
        if function(int(size)) != 1:
            sys.exit("%s(%s) did not see what it should" % (name, size))
