"""Calls of compiled functions that were heard, made again: those that follow each other by a single call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from grpo_bench.kernels import _library

Call = tuple[Callable[..., Any], Sequence[Any], dict[str, Any]]


class _Slot(ctypes.Union):
    """See calls.h."""

    _fields_ = (("p", ctypes.c_void_p), ("i", ctypes.c_int64), ("f", ctypes.c_float))


class _Call(ctypes.Structure):
    """See play.c."""

    _fields_ = (("function", ctypes.c_void_p), ("arguments", ctypes.c_void_p))


_MEMBERS = {ctypes.c_void_p: "p", ctypes.c_float: "f"}  # integers of both sizes: i


def together(calls: list[Call]) -> tuple[list[Call], list[Any]]:
    """The same calls, as few as these can be made by; and what they point to, which has to be kept."""
    out, kept, run = list[Call](), list[Any](), list[tuple[Call, Any]]()

    def close() -> None:
        if len(run) == 1:
            out.append(run[0][0])
        elif run:
            made = (_Call * len(run))()
            for one, ((function, args, _), form) in zip(made, run, strict=True):
                slots = _slots(function, args)
                one.function, one.arguments = ctypes.cast(form, ctypes.c_void_p).value, ctypes.addressof(slots)
                kept.append(slots)
            kept.append(made)
            out.append((_library().play, (ctypes.addressof(made), len(run)), {}))  # type: ignore[union-attr]
        run.clear()

    for call in calls:
        if (form := _form(call[0])) is not None:
            run.append((call, form))
        else:
            close()
            out.append(call)
    close()
    return out, kept


def _form(function: Any) -> Any:
    """The form of a compiled function that takes its arguments from memory; None where there is none."""
    if not isinstance(function, ctypes._CFuncPtr):  # type: ignore[attr-defined]
        return None
    return getattr(_library(), f"call_{function.__name__}", None)  # type: ignore[attr-defined]


def _slots(function: Any, args: Sequence[Any]) -> Any:
    slots = (_Slot * len(args))()
    for slot, kind, value in zip(slots, function.argtypes, args, strict=True):
        setattr(slot, _MEMBERS.get(kind, "i"), value)
    return slots
