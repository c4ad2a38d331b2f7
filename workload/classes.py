"""Many classes: types, their dicts and caches, instances with dicts, slots, weak references and finalizers."""

import weakref


def make(number):
    def method(self):
        return number

    bases = (object,) if number % 3 else (dict,)
    members = {"m%d" % index: method for index in range(number % 30)}
    if number % 5 == 0:
        members["__slots__"] = ("a", "b", "__weakref__")
    if number % 7 == 0:
        members["__del__"] = lambda self: None
    return type("Class%d" % number, bases, members)


total = 0
for generation in range(3):
    classes = [make(number) for number in range(1500)]
    instances = [cls() for cls in classes for _ in range(10)]
    references = [weakref.ref(instance) for instance in instances if hasattr(type(instance), "__weakref__")]
    for instance in instances:
        if hasattr(instance, "__dict__"):
            instance.first, instance.second = instance, [instance]
    total += len(references)
    del instances[::2], classes[::3]
print("classes:", total)
