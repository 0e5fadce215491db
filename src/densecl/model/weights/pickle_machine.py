"""A small machine that reads pickles without running anything.

A pickle is a program for a machine with a stack. Python's own machine calls whatever functions the program names. This
one calls nothing: a function or a class is only a name (`Global`), and what it would have made is an inert `Made` that
keeps what it was given.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

#: Instructions that a pickle may have. A state dict needs 30 for each tensor; each may allocate a little.
MOST_INSTRUCTIONS = 3_000_000

#: What would come of calling something with arguments.
Make = Callable[[Any, Any], Any]


class NotPlainError(ValueError):
    """A file that is whole but is no pickle of tensors; the message says what it is and what to do."""


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or a function. It is never looked up."""

    module: str
    name: str

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Made:
    """What a pickle would have made by calling something: kept, not called.

    Attributes:
        by: what would have been called.
        arguments: ... with these.
        items: what was put into it by key, as into a dict.
        members: what was appended or added to it, as to a list or a set.
        state: what it would have been set to, most often its attributes.
    """

    by: Any
    arguments: tuple[Any, ...]
    items: dict[Any, Any] = field(default_factory=dict)
    members: list[Any] = field(default_factory=list)
    state: Any = None


def interpret(file: Any, persistent: Callable[[Any], Any], make: Make) -> Any:
    """What one pickle holds: plain values, and what `make` makes. Calls nothing that the pickle names.

    Args:
        file: stands behind the pickle afterwards.
        persistent: what an identifier in the pickle stands for.
        make: what a call in the pickle stands for; most often a `Made`.

    Raises:
        Exception: it is no pickle, or damaged; of many kinds.
    """
    stack: list[Any] = []
    marked: list[list[Any]] = []  # the stacks below each mark
    memo: dict[int, Any] = {}
    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count >= MOST_INSTRUCTIONS:
            raise NotPlainError("is a pickle too long for one of weights. Save the state dict alone")
        match opcode.name:
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[int(argument)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[int(argument)])
            case "MARK":
                marked.append(stack)
                stack = []
            case "POP_MARK":
                stack = marked.pop()
            case "POP":
                if stack:
                    stack.pop()
                else:
                    stack = marked.pop()
            case "DUP":
                stack.append(stack[-1])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(opcode.name[-1])
                stack[-length:] = [tuple(stack[-length:])]
            case "TUPLE" | "LIST" | "FROZENSET" | "DICT" | "OBJ" | "INST":
                items, stack = stack, marked.pop()
                stack.append(_gathered(opcode.name, items, str(argument), make))
            case "APPEND":
                item = stack.pop()
                _extend(stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items, stack = stack, marked.pop()
                _extend(stack[-1], items)
            case "SETITEM":
                items = [stack.pop(), stack.pop()][::-1]
                put(stack[-1], items)
            case "SETITEMS":
                items, stack = stack, marked.pop()
                put(stack[-1], items)
            case "GLOBAL":
                stack.append(Global(*str(argument).split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                if not isinstance(module, str) or not isinstance(name, str):
                    raise pickle.UnpicklingError("a name that is no text")
                stack.append(Global(module, name))
            case "REDUCE" | "NEWOBJ":
                arguments, by = stack.pop(), stack.pop()
                stack.append(make(by, arguments))
            case "NEWOBJ_EX":
                _, arguments, by = stack.pop(), stack.pop(), stack.pop()
                stack.append(make(by, arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Made):
                    stack[-1].state = state
            case "BINPERSID":
                stack.append(persistent(stack.pop()))
            case "PERSID" | "EXT1" | "EXT2" | "EXT4" | "NEXT_BUFFER" | "READONLY_BUFFER":
                raise pickle.UnpicklingError(f"{opcode.name} does not occur in files of weights")
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case _:  # numbers, text and bytes
                stack.append(argument)
    raise EOFError("the pickle has no end")


def _gathered(name: str, items: list[Any], argument: str, make: Make) -> Any:
    """What an instruction makes of all that stands above the last mark."""
    match name:
        case "TUPLE":
            return tuple(items)
        case "DICT":
            made: dict[Any, Any] = {}
            put(made, items)
            return made
        case "OBJ":
            return make(items[0], tuple(items[1:]))
        case "INST":
            return make(Global(*argument.split(" ", 1)), tuple(items))
    return items  # a list; a set too, whose members are not hashed


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, Made):
        target.members += items
    elif isinstance(target, list):
        target += items


def put(target: Any, items: list[Any]) -> None:
    """Keys and values by turns. Only plain keys: to hash a tuple nested a million deep would crash Python."""
    target = target.items if isinstance(target, Made) else target
    if isinstance(target, dict):
        pairs = zip(items[::2], items[1::2], strict=True)
        target.update((key, value) for key, value in pairs if isinstance(key, (str, bytes, int, float)))
