"""What pickles name from outside: which names are refused. A name that is not is only a name; nothing is looked up.

Trainers put objects of many classes beside weights. Those become inert: nothing of them is imported, made or called,
so a list of what is allowed would refuse good files and protect nobody. What a file that is meant to do harm calls is
refused all the same, so that it is told and not used: functions of Python's own library, and the few of others that
run code or fetch files.
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
"""Modules of Python's own library, with those of Python 2."""
_HOSTILE = (
    "IPython.", "cloudpickle.", "dill.", "joblib.", "numpy.f2py.", "numpy.load", "numpy.testing.", "pip.", "requests.",
    "setuptools.", "torch._utils.", "torch.hub.", "torch.jit.", "torch.load", "torch.package.", "torch.serialization.",
    "torch.utils.cpp_extension.", "torch.utils.data.datapipes.",
)  # fmt: skip
"""How names of other libraries begin that run code or fetch files, and of torch's that make tensors in unknown ways."""


@lru_cache(1000)
def is_refused(name: str) -> bool:
    """Whether weights have no business with this name, `module.name`."""
    if name in _HARMLESS or name.startswith(_HARMLESS_MODULES):
        return False
    return name.partition(".")[0] in _STANDARD or name.startswith(_HOSTILE)
