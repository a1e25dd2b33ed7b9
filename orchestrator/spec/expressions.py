"""Arithmetic in sweep files: `1 - thresholds.background`, `loss.mcc > 0 and mask.views >= 4`.

A text is parsed, never executed: numbers, texts, names of experiment fields, operators and a few functions. Whatever
else Python knows is refused by name, before any value is looked up.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from mcc_core.errors import UsageError

_LONGEST = 200
_LARGEST = 1e300
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda a, b: math.pow(a, b),  # of floats: overflows at once instead of computing for ever
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "round": round,
    "floor": math.floor,
    "ceil": math.ceil,
    "sqrt": math.sqrt,
    "log": math.log,
    "exp": math.exp,
}


class Expression:
    """A checked text. Raises UsageError, beginning with `source`, for anything that is not such arithmetic."""

    def __init__(self, text: object, source: str) -> None:
        self.source = f"{source}: {text!r}"
        if not isinstance(text, str | int | float | bool):
            raise UsageError(f"{self.source}: expected arithmetic on fields, such as 1 - thresholds.background")
        if len(str(text)) > _LONGEST:
            raise UsageError(f"{source}: longer than the {_LONGEST} characters that an expression may have")
        try:
            self._tree = ast.parse(str(text).strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise UsageError(f"{self.source}: not an expression, such as 1 - thresholds.background") from None
        self.names = tuple(dict.fromkeys(self._names(self._tree)))

    def value(self, field: Callable[[str], Any]) -> Any:
        """The value with fields from `field`. Raises UsageError when it cannot be computed."""
        try:
            result = self._value(self._tree, field)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise UsageError(f"{self.source}: cannot be computed: {error}") from None
        if isinstance(result, float) and not abs(result) < _LARGEST:
            raise UsageError(f"{self.source}: is {result}, not a usable number")
        return result

    def _names(self, node: ast.AST) -> list[str]:
        match node:
            case ast.Constant(value=bool() | int() | float() | str()):
                return []
            case ast.Name() | ast.Attribute():
                return [self._dotted(node)]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return self._names(left) + self._names(right)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
                return self._names(operand)
            case ast.BoolOp(values=values):
                return [name for value in values for name in self._names(value)]
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARE for op in ops):
                return [name for value in (left, *others) for name in self._names(value)]
            case ast.Call(func=ast.Name(id=function), args=args, keywords=[]) if function in _FUNCTIONS:
                return [name for value in args for name in self._names(value)]
        allowed = f"numbers, fields, + - * / // % **, comparisons, and, or, not, {', '.join(_FUNCTIONS)}"
        raise UsageError(f"{self.source}: {ast.unparse(node)!r} is not allowed here; allowed are {allowed}")

    def _dotted(self, node: ast.AST) -> str:
        if isinstance(node, ast.Name):
            return node.id
        if isinstance(node, ast.Attribute):
            return f"{self._dotted(node.value)}.{node.attr}"
        raise UsageError(f"{self.source}: {ast.unparse(node)!r} is not the name of a field")

    def _value(self, node: ast.AST, field: Callable[[str], Any]) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.BinOp(left=left, op=op, right=right):
                return _BINARY[type(op)](self._number(left, field), self._number(right, field))
            case ast.UnaryOp(op=op, operand=operand):
                return _UNARY[type(op)](self._value(operand, field))
            case ast.BoolOp(op=op, values=values):
                truths = (bool(self._value(value, field)) for value in values)
                return all(truths) if isinstance(op, ast.And) else any(truths)
            case ast.Compare(left=left, ops=ops, comparators=others):
                values = [self._value(v, field) for v in (left, *others)]
                return all(_COMPARE[type(op)](a, b) for op, (a, b) in zip(ops, pairwise(values), strict=True))
            case ast.Call(func=ast.Name(id=function), args=args):
                return _FUNCTIONS[function](*(self._number(arg, field) for arg in args))
        return field(self._dotted(node))

    def _number(self, node: ast.AST, field: Callable[[str], Any]) -> float:
        value = self._value(node, field)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{ast.unparse(node)} is {str(value)!r}, not a number")
        return value
