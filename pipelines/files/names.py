"""Which classes and functions a pickle must not refer to. Other names are just text; nothing is looked up.

Trainers store objects of many classes along with weights. These become inert: nothing is imported, created or called
for them, so a list of allowed names would refuse good files and protect nobody. Names that malicious files use are
still refused, so that users are warned: functions of Python's standard library, and the few of other libraries that run
code or fetch files.
"""

import sys
from functools import lru_cache

_HARMLESS_MODULES = (
    "collections.", "datetime.", "decimal.", "enum.", "fractions.", "numbers.", "pathlib.", "typing.", "uuid.",
)  # fmt: skip
_HARMLESS = {
    "_codecs.encode",
    "argparse.Namespace",
    "array.array",
    "copy_reg._reconstructor",
    "copyreg._reconstructor",
    "functools.partial",
    "random.Random",
    "re._compile",
    "time.struct_time",
    "types.SimpleNamespace",
}
_PLAIN_CLASSES = (
    "Ellipsis", "NotImplemented", "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list",
    "long", "object", "range", "set", "slice", "str", "tuple", "type", "unicode", "xrange",
)  # fmt: skip
_HARMLESS |= {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _PLAIN_CLASSES}
_STANDARD = sys.stdlib_module_names | {
    "__builtin__", "cPickle", "cStringIO", "commands", "copy_reg", "exceptions", "popen2", "urllib2",
}  # fmt: skip
"""Modules of Python's standard library, including those of Python 2."""
_HOSTILE = (
    "IPython.", "cloudpickle.", "dill.", "joblib.", "numpy.f2py.", "numpy.load", "numpy.testing.", "pip.", "requests.",
    "setuptools.", "torch._utils.", "torch.hub.", "torch.jit.", "torch.load", "torch.package.", "torch.serialization.",
    "torch.utils.cpp_extension.", "torch.utils.data.datapipes.",
)  # fmt: skip
"""Prefixes of names in other libraries that run code or fetch files, or that make torch tensors in unknown ways."""


@lru_cache(1000)
def is_refused(name: str) -> bool:
    """Return whether weights must not refer to this name, `module.name`."""
    if name in _HARMLESS or name.startswith(_HARMLESS_MODULES):
        return False
    return name.partition(".")[0] in _STANDARD or name.startswith(_HOSTILE)
