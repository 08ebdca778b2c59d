"""What a compiled function is made of: everything that its machine code depends on, read from the live objects.

Walking from a function through what it closes over, the globals it names and the kernels among these, and writing down
bytecode and constants, gives two functions the same identity only if Numba translates them alike. Source files would
not do: closures of one source differ in what they close over, and a file may be edited after it was imported. What the
walk does not know makes a function ``Unknown``, which costs a compilation and never a wrong answer. Not seen is what
another package teaches Numba itself to inline or to lower, such as a method of its own for arrays.

Numba takes a global for a constant when it first compiles a function that reads it. So the first reading is kept, and a
function that reads otherwise later is ``Unknown`` for good: its machine code may be of either kind.
"""

import hashlib
import sys
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numba.core import types
from numba.core.caching import NullCache
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic

__all__ = ["Noted", "Unknown", "identity", "type_words"]

_VERSIONED = {"builtins", "llvmlite", "math", "numba", "numpy"}  # packages that their version identifies
_CODE = [  # all but names and places in the source
    *("co_code", "co_exceptiontable", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_flags"),
    *("co_argcount", "co_posonlyargcount", "co_kwonlyargcount"),
]
_SCALARS = (types.Integer, types.Float, types.Boolean, types.NoneType)
_TUPLES = (types.UniTuple, types.Tuple, types.NamedUniTuple, types.NamedTuple)

_Node = tuple[FunctionType, bool]  # a function, and whether Python calls it at compile time instead of translating it
_Reading = tuple[list[str], list[_Node]]  # what is written down of one function, and which it refers to


class Unknown(Exception):
    """Something is reached of which the walk cannot tell all that machine code may depend on."""


class Noted(NullCache):
    """The cache of a dispatcher, as far as this module needs it: it keeps nothing, and notes what is compiled."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Read the function as it is now about to be compiled."""
        _read((self.function, False))

    def save_overload(self, sig: Any, cres: Any) -> None:
        """Note the name of its machine code."""
        _symbols.setdefault(self.function, set()).add(cres.fndesc.mangled_name)


_first: WeakKeyDictionary[FunctionType, _Reading | Unknown] = WeakKeyDictionary()
_symbols: WeakKeyDictionary[FunctionType, set[str]] = WeakKeyDictionary()


def _read(node: _Node) -> _Reading | Unknown:
    """Read one function, and see that it reads as it did the first time."""
    reader = _Reader(meta=node[1])
    reading: _Reading | Unknown
    try:
        reader.function(node[0])
        reading = reader.words, reader.others
    except Exception as error:  # Unknown, or what a strange object raises when it is looked at
        reading = Unknown(*error.args)
    first = _first.setdefault(node[0], reading)
    if first != reading and not isinstance(first, Unknown):
        _first[node[0]] = Unknown(f"{node[0].__qualname__} has changed since it was first compiled")
    return _first[node[0]]


def identity(function: Any) -> tuple[list[str], set[str]]:
    """Return the words that identify what ``function`` compiles to, and the names of the machine code it may hold.

    Raises
    ------
    Unknown
        Where the walk reaches something that it does not know.
    """
    words: list[str] = []
    nodes = [(function, False)]
    number = {nodes[0]: 0}  # in the order of discovery; others refer to a function by it
    for node in nodes:  # which grows meanwhile
        reading = _read(node)
        if isinstance(reading, Unknown):
            raise Unknown(*reading.args)
        for other in reading[1]:
            if other not in number:
                number[other] = len(nodes)
                nodes.append(other)
        words += [*reading[0], repr([number[other] for other in reading[1]])]
    return words, set().union(*(_symbols.get(reached, ()) for reached, _ in nodes))


def type_words(kind: Any) -> list[str]:
    """Return the words that identify a Numba type: scalars, arrays, tuples of them; others raise ``Unknown``."""
    if isinstance(kind, _SCALARS):
        return [repr(kind)]
    if type(kind) is types.Array and isinstance(kind.dtype, _SCALARS):
        return [repr(kind)]
    if type(kind) in _TUPLES:
        words = [type(kind).__name__, str(len(kind.types))]
        if hasattr(kind, "instance_class"):
            words += _named_tuple(kind.instance_class)
        for member in kind.types:
            words += type_words(member)
        return words
    raise Unknown(repr(kind))


def _named_tuple(kind: Any) -> list[str]:
    """Return the words that identify a class of NamedTuples, which another process must be able to import."""
    if kind.__bases__ != (tuple,) or not hasattr(kind, "_fields") or not _importable(kind):
        raise Unknown(repr(kind))
    return ["NamedTuple", kind.__module__, kind.__qualname__, repr(kind._fields), repr(kind._field_defaults)]


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", None) or getattr(value, "__name__", "?"))


def _importable(value: Any) -> bool:
    """Tell whether importing what ``value`` says it is called gives ``value``."""
    module = getattr(value, "__module__", None) or type(value).__module__
    found: Any = None if module == "__main__" else sys.modules.get(module)
    for name in _name(value).split("."):
        found = getattr(found, name, None)
    return found is value


class _Reader:
    """Writes one function down as words, and lists the functions it refers to."""

    def __init__(self, meta: bool) -> None:
        self.meta = meta
        self.words: list[str] = []
        self.others: list[_Node] = []

    def function(self, function: FunctionType) -> None:
        """Read bytecode, constants, defaults, what is closed over, and globals."""
        self.code(function.__code__)
        self.value(function.__defaults__)
        if function.__kwdefaults__:
            raise Unknown(f"{function.__qualname__} has keyword-only defaults")
        for cell in function.__closure__ or ():
            try:
                self.value(cell.cell_contents)
            except ValueError:  # nothing in it yet
                raise Unknown(f"{function.__qualname__} closes over nothing yet") from None
        for name in sorted(_names(function.__code__)):  # of globals and attributes; a few globals too many do no harm
            if name in function.__globals__:
                self.words.append(f"global {name}")
                self.value(function.__globals__[name])

    def code(self, code: CodeType) -> None:
        """Read a code object, but for what tells only where it stands."""
        self.words += [repr(getattr(code, field)) for field in _CODE]
        self.value(code.co_consts)

    def value(self, value: Any) -> None:
        """Read a constant, or refer to a function."""
        kind = type(value)
        if value is None or value is ... or kind in (bool, int, str, bytes):
            self.words.append(repr(value))
        elif kind in (float, complex):
            self.words += [kind.__name__, np.array(value).tobytes().hex()]  # nan and -0.0 to the bit
        elif kind in (tuple, frozenset):
            self.words.append(f"{kind.__name__} {len(value)}")
            for item in value if kind is tuple else sorted(value, key=repr):
                self.value(item)
        elif kind is slice:
            self.words.append("slice")
            self.value((value.start, value.stop, value.step))
        elif kind is CodeType:
            self.code(value)
        elif kind is np.ndarray or isinstance(value, np.generic):
            if value.dtype.kind not in "biufc":
                raise Unknown(f"array of {value.dtype}")
            self.words += [kind.__name__, value.dtype.str, repr(value.shape), repr(value.strides)]
            self.words.append(hashlib.sha256(value.tobytes()).hexdigest())
        elif isinstance(value, types.Type):
            self.words += type_words(value)
        elif isinstance(value, Dispatcher) and isinstance(getattr(value, "_cache", None), Noted):
            self.words += ["kernel", type(value).__name__]
            self.value(tuple(sorted(value.targetoptions.items())))
            self.others.append((value.py_func, False))
        elif isinstance(value, _Intrinsic) and value.__module__.startswith("kvpredict."):
            self.words += ["intrinsic", repr(value._prefer_literal)]
            self.others.append((value._defn, True))
        elif kind is FunctionType and self.meta and value.__module__.startswith("kvpredict."):
            self.words.append("function")
            self.others.append((value, True))
        else:
            self.by_name(value)

    def by_name(self, value: Any) -> None:
        """Read what its name and a package's version identify, or a class of NamedTuples."""
        if isinstance(value, ModuleType):
            name, known = value.__name__, sys.modules.get(value.__name__) is value
        else:
            name, known = getattr(value, "__module__", None) or type(value).__module__, _importable(value)
        if known and name.split(".")[0] in _VERSIONED:
            self.words += ["named", name, _name(value)]
        elif isinstance(value, type):
            self.words += _named_tuple(value)
        else:
            raise Unknown(repr(value))


def _names(code: CodeType) -> set[str]:
    """Return the names in ``code`` and in the functions defined inside it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names
