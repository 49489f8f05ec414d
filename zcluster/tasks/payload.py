"""Functions, arguments, results and exceptions as bytes.

Importable functions travel by reference (their name); those of `__main__`, lambdas, closures and what is typed at a
prompt by value, through cloudpickle. A function is serialized once and then named by its digest, for as long as
nothing it refers to has changed: see `Functions`. Buffers of 64 KiB and more (NumPy arrays, bytearrays) are carried
beside the pickle, as segments; they arrive writable.

Not here: messages and sockets.
"""

from __future__ import annotations

import dis
import os
import pickle
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any, Final

import msgspec

from zcluster.errors import Unpicklable
from zcluster.tasks.protocol import INLINE_BYTES_MAX, Function

FUNCTIONS_MAX: Final = 256
"""Functions a client keeps known to the router; the one used the longest ago is forgotten first."""

_loads = pickle.loads
_dumps = pickle.dumps
Segments = list[bytes] | None
_SMALL: Final = frozenset((type(None), bool, float))
"""Values of these types need none of the precautions."""
_NO_ARGUMENTS: Final = _dumps((), 5)


# -- values -----------------------------------------------------------------------------------------------------------
def dump(value: Any) -> tuple[bytes, Segments]:
    """(pickle, None), or (b"", [pickle, buffer, ...]) when it is large. Raises: whatever pickling raises."""
    if type(value) in _SMALL:
        return _dumps(value, 5), None
    buffers: list[pickle.PickleBuffer] = []

    def keep_inline(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < INLINE_BYTES_MAX:
            return True
        buffers.append(buffer)
        return False

    try:
        data = _dumps(value, 5, buffer_callback=keep_inline)
        by_value = b"__main__" in data
    except (pickle.PicklingError, AttributeError, TypeError):
        by_value = True
    if by_value:  # what the receiver cannot import goes by value; a mere mention of the name does no harm
        import cloudpickle

        buffers.clear()
        data = cloudpickle.dumps(value, 5, buffer_callback=keep_inline)
    if not buffers and len(data) < INLINE_BYTES_MAX:
        return data, None
    return b"", [data, *(bytes(buffer.raw()) for buffer in buffers)]


def load(data: bytes, segments: Segments) -> Any:
    """What `dump` made. Raises: whatever unpickling raises."""
    if segments is None:
        return _loads(data)
    return _loads(segments[0], buffers=[bytearray(segment) for segment in segments[1:]])


def dump_arguments(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bytes, Segments]:
    """Arguments of one call; `protocol.KEYWORDS` must be set when there are `kwargs`. Raises: Unpicklable."""
    if not args and not kwargs:
        return _NO_ARGUMENTS, None
    try:
        return dump((args, kwargs) if kwargs else args)
    except Exception as error:
        name = getattr(function, "__qualname__", repr(function))
        raise Unpicklable(f"{_culprit(args, kwargs)} of {name}() cannot be pickled: {error}") from error


def _culprit(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    for label, value in [*((f"argument {i + 1}", v) for i, v in enumerate(args)), *kwargs.items()]:
        try:
            dump(value)
        except Exception:
            return f"{label} ({type(value).__name__})"
    return "the arguments"


# -- exceptions -------------------------------------------------------------------------------------------------------
class RemoteTraceback(Exception):
    """The worker's traceback, as the cause of the exception that a task raised."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


_encode_failure = msgspec.msgpack.Encoder().encode
_decode_failure = msgspec.msgpack.Decoder(tuple[bytes | None, str, str]).decode


def dump_exception(error: BaseException) -> bytes:
    """The exception if it survives pickling, its repr, and its traceback as text. Never raises."""
    import traceback

    try:
        text = "".join(traceback.format_exception(error))
    except Exception:
        text = f"(the traceback of {type(error).__name__} cannot be shown)\n"
    try:
        shown = repr(error)
    except Exception:
        shown = f"<{type(error).__name__} without a repr>"
    pickled = None
    trace, error.__traceback__ = error.__traceback__, None
    try:
        data, segments = dump(error)
        if segments is None and isinstance(load(data, None), BaseException):
            pickled = data
    except Exception:
        pickled = None
    finally:
        error.__traceback__ = trace
    return _encode_failure((pickled, shown[:10_000], text[-100_000:]))


def load_exception(payload: bytes) -> BaseException:
    """The original exception with the remote traceback as its cause, or `Unpicklable` which tells about it."""
    pickled, shown, text = _decode_failure(payload)
    error: BaseException | None = None
    if pickled is not None:
        try:
            error = _loads(pickled)
        except Exception:
            error = None
    if not isinstance(error, BaseException):
        error = Unpicklable(f"the task raised {shown}, which cannot be carried over to this process")
    error.__cause__ = RemoteTraceback(text)
    return error


# -- functions --------------------------------------------------------------------------------------------------------
def context() -> tuple[list[str], str]:
    """Where this process finds modules and files: absolute `sys.path`, working directory."""
    try:
        cwd = os.getcwd()
    except FileNotFoundError:  # removed under us
        cwd = ""
    return [os.path.join(cwd, entry) if entry else cwd for entry in sys.path], cwd


def dump_function(function: Callable[..., Any]) -> tuple[bytes, bool]:
    """(bytes, whether by value). Raises: Unpicklable."""
    try:
        try:
            data = _dumps(function, 5)
            if b"__main__" not in data:
                return data, False
        except (pickle.PicklingError, AttributeError, TypeError):
            pass
        import cloudpickle

        return cloudpickle.dumps(function, 5), True
    except Exception as error:
        name = getattr(function, "__qualname__", repr(function))
        raise Unpicklable(f"the function {name} cannot be pickled: {error}") from error


class KnownFunction:
    """A serialized function and what it was made from."""

    __slots__ = ("_made_from", "function", "wire")

    def __init__(self, function: Callable[..., Any]) -> None:
        blob, by_value = dump_function(function)
        path, cwd = context()
        digest = blake2b(blob, digest_size=16)
        digest.update("\0".join([*path, cwd]).encode(errors="surrogateescape"))
        self.function = function
        self._made_from = _references(function) if by_value else ([] if _is_name(function) else None)
        self.wire = Function(digest.digest(), blob, path, cwd, self._made_from is not None)

    def fresh(self, function: Callable[..., Any]) -> bool:
        """Would serializing `function` again give the same?"""
        if self.function is not function or self._made_from is None:
            return False
        return all(read(holder, name) is value for read, holder, name, value in self._made_from)


class Functions:
    """The functions that a client has serialized, by identity. One that can change unnoticed is serialized anew."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, KnownFunction] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, function: Callable[..., Any]) -> Function:
        """Raises: Unpicklable."""
        known = self._known.get(id(function))
        if known is not None and known.fresh(function):
            return known.wire
        known = KnownFunction(function)
        with self._lock:
            self._known[id(function)] = known
            self._known.move_to_end(id(function))
            if len(self._known) > FUNCTIONS_MAX:
                self._known.popitem(last=False)
        return known.wire


_UNCHANGING: Final = (int, float, complex, str, bytes, bool, type(None), type(...), types.ModuleType, type)
_ABSENT: Final = object()
_Reference = tuple[Callable[[Any, Any], Any], Any, Any, Any]


def _is_name(function: Any) -> bool:
    """Is its pickle, made by reference, only a name, without any state?"""
    if type(function) is types.BuiltinFunctionType:
        return isinstance(function.__self__, (types.ModuleType, type, types.NoneType))
    return isinstance(function, (types.FunctionType, type))


def _read_global(namespace: Any, name: Any) -> Any:
    return namespace.get(name, _ABSENT)


def _read_cell(cell: Any, _: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return _ABSENT


def _references(function: Any) -> list[_Reference] | None:
    """Where a by-value function looks and what it found there; None if any of that can change in place."""
    found: list[_Reference] = []
    seen: set[int] = set()
    todo = [function]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if type(one) is not types.FunctionType or one.__dict__:
            return None
        places: list[_Reference] = [
            (getattr, one, name, getattr(one, name)) for name in ("__code__", "__defaults__", "__kwdefaults__")
        ]
        places += [(_read_global, one.__globals__, n, one.__globals__.get(n, _ABSENT)) for n in _names(one.__code__)]
        places += [(_read_cell, cell, None, _read_cell(cell, None)) for cell in one.__closure__ or ()]
        for place in places:
            value = place[3]
            if isinstance(value, types.FunctionType):
                if value.__module__ in (None, "__main__") or "<locals>" in value.__qualname__:
                    todo.append(value)
            elif not _unchanging(value):
                return None
        found += places
    return found


def _unchanging(value: Any) -> bool:
    if type(value) in (tuple, frozenset):
        return all(_unchanging(item) for item in value)
    return value is _ABSENT or isinstance(value, (*_UNCHANGING, types.BuiltinFunctionType, types.CodeType))


def _names(code: types.CodeType) -> Iterator[str]:
    """Global names that a function or anything defined inside it reads."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
