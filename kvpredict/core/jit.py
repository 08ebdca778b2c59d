"""The decorators behind every compiled function.

``kernel`` compiles with Numba, releases the GIL and gives division NumPy's meaning; what it compiled is kept on disk
(``core.code_cache``), which sees a change in any kernel inside. With ``NUMBA_DISABLE_JIT=1`` it hands the plain Python
function back, so everything built on it must mean the same in both worlds: integers stay below 2**63 (no reliance on
wrapping), nothing divides by zero, and no index of an array is negative but a single constant. That goes for functions
of others, too, that Numba writes into a kernel (``njit(inline="always")``); what it only calls is compiled as ever.

``lean_kernel`` is for functions that kernels call; they stay callable from Python, by way of a kernel made then.
"""

import copy
import operator
import secrets
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from llvmlite.binding import Linkage  # type: ignore[import-untyped]
from numba.core import config, types
from numba.core.codegen import JITCodeLibrary, RuntimeLinker
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.cpu import CPUContext
from numba.core.errors import UnsupportedError
from numba.core.ir import Expr, SetItem, StaticSetItem
from numba.core.ir_utils import find_build_sequence, find_const, get_definition, guard
from numba.core.registry import CPUDispatcher
from numba.core.untyped_passes import InlineInlinables

from kvpredict.core.code_cache import CodeCache
from kvpredict.core.identity import Noted

__all__ = ["interpreted", "kernel", "lean_kernel", "lean_subroutine", "sole_kernel"]

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
_KERNEL: dict[str, Any] = {**_OPTIONS, "_nrt": True, "forceinline": False}  # not handed down from a lean caller


def interpreted() -> bool:
    """Tell whether Numba is disabled (``NUMBA_DISABLE_JIT=1``)."""
    return bool(vars(config)["DISABLE_JIT"])


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function`` on its first call (``nogil``, NumPy error model), or load what was compiled of it."""
    return _cached(function, _KERNEL)


def sole_kernel(function: Callable[..., Any]) -> Any:
    """Compile ``function`` as a kernel that keeps the GIL, and that ``compile(signature)`` makes callable."""
    return _cached(function, {"error_model": "numpy", "no_cfunc_wrapper": True})


def _cached(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    compiled: Any = numba.njit(pipeline_class=_OuterCompiler, **options)(function)
    if not interpreted():
        compiled._cache = CodeCache(compiled)
    return compiled


class _Context(CPUContext):
    """How Numba translates, but that an index worked out at run time does not count from the end of an array.

    Otherwise each is compared with 0, and the array's length kept at hand: 10 to 20 % of the time of a policy.
    """

    @classmethod
    def of(cls, context: CPUContext) -> Any:
        plain: Any = copy.copy(context)
        plain.__class__ = cls
        plain.cached_internal_func = {}  # not shared: what Numba compiles of its own for a kernel is compiled so, too
        return plain

    def get_function(self, fn: Any, sig: Any, _firstcall: bool = True) -> Any:
        """Return what translates a call of ``fn``."""
        if getattr(fn, "typing_key", None) not in (operator.getitem, operator.setitem):
            return super().get_function(fn, sig, _firstcall)
        array, index, *value = sig.args
        plain = _unsigned(index)
        if plain is index or not isinstance(array, types.Array):
            return super().get_function(fn, sig, _firstcall)
        typed = fn.get_call_type(self.typing_context, (array, plain, *value), {})
        usual, lean = super().get_function(fn, sig, _firstcall), super().get_function(fn, typed, _firstcall)

        def translate(builder: Any, args: Any, loc: Any = None) -> Any:
            if isinstance(args[1], ir.Constant):
                return usual(builder, args, loc)
            return lean(builder, (args[0], self.cast(builder, args[1], index, plain), *args[2:]), loc)

        return translate


def _unsigned(index: Any) -> Any:
    """Return the type of an index that cannot be negative; what is no whole number stays as it is."""
    if isinstance(index, types.Integer):
        return types.uintp
    if isinstance(index, types.UniTuple | types.Tuple):
        parts = tuple(_unsigned(part) for part in index.types)
        return index if parts == index.types else types.BaseTuple.from_types(parts)
    return index


@register_pass(mutates_CFG=False, analysis_only=True)
class _CheckIndices(FunctionPass):
    """Refuse what such translation would get wrong without a word."""

    _name = "kvpredict_check_indices"

    def __init__(self) -> None:  # which Numba wants every pass to have
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        """Raise ``UnsupportedError`` on a negative constant among several indices, or one worked out of constants."""
        code = state.func_ir
        for block in code.blocks.values():
            for statement in block.body:
                index = _index(statement)
                parts = _constants(code, index) if index is not None else []
                if min((part for part in parts if isinstance(part, int)), default=0) < 0:
                    raise UnsupportedError(
                        "an index is negative, and one of several or worked out: count from the start", statement.loc
                    )
        return False


def _index(statement: Any) -> Any:
    """Return the variable that a statement reads or writes an array at, or None."""
    if isinstance(statement, SetItem):
        return statement.index
    if isinstance(statement, StaticSetItem):
        return statement.index_var
    value: Any = getattr(statement, "value", None)
    if isinstance(value, Expr) and value.op == "getitem":
        return value.index
    if isinstance(value, Expr) and value.op == "static_getitem":
        return value.index_var
    return None


def _constants(code: Any, index: Any) -> list[Any]:
    """Return the constants among several indices, or what constants make of one that is worked out of them."""
    alone = guard(find_const, code, index)
    if alone is not None:
        return list(alone) if isinstance(alone, tuple) else []  # a single constant is translated as ever
    several, _ = guard(find_build_sequence, code, index) or ([index], None)
    return [_value(code, part) for part in several]


def _value(code: Any, index: Any) -> Any:
    """Return what constants make of an index, None if there is more in it."""
    constant = guard(find_const, code, index)
    if constant is not None:
        return constant
    made = guard(get_definition, code, index)
    parts = {"unary": ["value"], "binop": ["lhs", "rhs"]}.get(getattr(made, "op", ""), [])
    values = [guard(find_const, code, getattr(made, part)) for part in parts]
    return made.fn(*values) if values and all(isinstance(value, int) for value in values) else None


class _Compiler(Compiler):
    """The usual pipeline, translating so."""

    def __init__(self, typingctx: Any, targetctx: Any, *rest: Any) -> None:
        super().__init__(typingctx, _Context.of(targetctx), *rest)

    def define_pipelines(self) -> list[Any]:
        """Return the passes."""
        pipelines: list[Any] = super().define_pipelines()
        for passes in pipelines:
            passes.add_pass_after(_CheckIndices, InlineInlinables)
            passes.finalize()
        return pipelines


class _OuterLibrary(JITCodeLibrary):
    """The code of a function that Python calls, of which no name but its own can be seen from outside.

    Numba names a function by its place in the source and a number that counts up in each process. Code from two
    processes may hold different functions of one name, and the wrong one would be called.
    """

    own = ""  # part of the names to be seen
    linked: frozenset[str] = frozenset()  # all functions it was made of
    sealed = False

    def _optimize_final_module(self) -> None:
        inside = [getattr(library, "linked", ()) for library in self._linking_libraries]
        self.linked = frozenset(f.name for f in self._visible()).union(*inside)
        # Numba looks functions that call each other up by name when all is compiled.
        self.sealed = not any(v.name.startswith(RuntimeLinker.PREFIX) for v in self._final_module.global_variables)
        for function in self._visible():
            if self.sealed and self.own not in function.name:
                function.linkage = "internal"  # and so LLVM drops the parameters that it does not use
        super()._optimize_final_module()

    def _visible(self) -> list[Any]:
        functions = self._final_module.functions
        return [f for f in functions if not f.is_declaration and f.linkage is not Linkage.internal]


class _OuterCompiler(_Compiler):
    """The usual pipeline, writing into such a library, with a name that no other process uses."""

    def _compile_bytecode(self) -> Any:
        own = secrets.token_hex(8)  # processes that were forked count alike
        self.state.func_id.func_qualname += own
        self.state.library = _OuterLibrary(self.state.targetctx.codegen(), own)
        self.state.library.own = own
        self.state.library.enable_object_caching()
        return super()._compile_bytecode()


class _InnerLibrary(JITCodeLibrary):
    """The code of a function that only compiled functions call: linked into theirs, and optimised there, once.

    Numba optimises and translates every function by itself as well, with all that it calls, so code at the bottom of
    five calls is optimised five times; that is most of the time that compiling a policy takes.
    """

    @property
    def codegen(self) -> Any:
        return self

    def set_env(self, *environment: Any) -> None:
        """Set nothing: there is no machine code yet, and nothing compiled here looks at its environment."""

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        return 0

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


class _InnerCompiler(_Compiler):
    """The usual pipeline, writing into such a library."""

    def __init__(self, typingctx: Any, targetctx: Any, library: Any, *rest: Any) -> None:
        if library is None:
            library = _InnerLibrary(targetctx.codegen(), "kvpredict")
        super().__init__(typingctx, targetctx, library, *rest)


class _LeanDispatcher(CPUDispatcher):
    """A dispatcher without the two wrappers for Python and C, which take half the time to compile."""

    def __init__(self, function: Callable[..., Any], inline: bool) -> None:
        wrapperless = {"nopython": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        lean = {"forceinline": inline, "_nrt": False, "boundscheck": None}
        super().__init__(function, targetoptions={**_OPTIONS, **wrapperless, **lean}, pipeline_class=_InnerCompiler)
        self._cache = Noted(function)
        self._outer: Any = None

    def _insert(self, *overload: Any) -> None:
        """Leave the table empty in which a call from Python looks for machine code: there is none for it."""

    def _compile_for_args(self, *args: Any, **kwargs: Any) -> Any:
        """Return what serves a call from Python; asked when nothing is found in that table."""
        if self._outer is None:
            self._outer = kernel(lambda *args: self(*args))
        return self._outer


def lean_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function``, which allocates no array, without reference counts and always inline.

    Reading an array out of a state's NamedTuple costs two atomic operations, more where tuples nest, which Numba drops
    only in simple functions; a miss that passes through several kernels is 3 to 10 times as fast without them. The
    caller's references keep the arrays alive. A function that does allocate fails to compile. Inlining spares each
    call the copy of the state's arrays, seven words apiece: up to twice as fast again, at no cost in compilation.
    """
    return function if interpreted() else _LeanDispatcher(function, inline=True)


def lean_subroutine(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function`` like ``lean_kernel``, but once for all its callers: for what is large and rarely called."""
    return function if interpreted() else _LeanDispatcher(function, inline=False)
