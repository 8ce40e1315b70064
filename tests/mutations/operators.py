"""Mutation operators: each makes the mistakes of one kind in a function's syntax tree, one mistake at a time.

An operator is a function (expression, its parent, the names that are bound) -> the expressions to put in its place.
Only formulas are changed, not docstrings, types, default values, messages, or the checks that raise.
"""

from __future__ import annotations

import ast
import copy
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# Where a node is: the fields, and the places in lists, that lead to it.
Way = tuple[tuple[str, int | None], ...]
Operator = Callable[[ast.expr, ast.AST, frozenset[str]], Iterator[ast.expr]]

# Pairs of names of the same type that are easily confused.
NAMES = [
    *(("x", "x0"), ("t", "s"), ("alpha", "sigma"), ("alpha", "std"), ("low", "high"), ("first", "last")),
    *(("first", "second"), ("begin", "end"), ("old", "new"), ("train", "test"), ("noise", "signal"), ("a", "b")),
    *(("below", "above"), ("small", "large"), ("least", "most"), ("cos", "sin"), ("mean", "std"), ("u", "t")),
    *(("ours", "other"), ("losses", "loss"), ("values", "vectors"), ("x", "y"), ("q", "target"), ("up", "down")),
    *(("alpha", "alpha_u"), ("sigma", "sigma_u"), ("seen", "x"), ("samples", "held_out"), ("lam_t", "lam_s")),
    *(("x0", "eps"), ("params", "ema"), ("size", "count"), ("source", "process"), ("target", "source")),
]
ATTRIBUTES = [
    *(("alpha", "sigma"), ("x0", "eps"), ("t_min", "t_max"), ("beta_min", "beta_max"), ("sigma_min", "sigma_max")),
    *(("low", "high"), ("params", "ema"), ("train", "test"), ("mean", "std"), ("alphas", "sigmas"), ("rtol", "atol")),
]
# A function and what is called in its place, with the same arguments.
FUNCTIONS = {
    "exp": ["expm1"],
    "expm1": ["exp"],
    "log": ["log1p"],
    "log1p": ["log"],
    "cos": ["sin"],
    "sin": ["cos"],
    "minimum": ["maximum"],
    "maximum": ["minimum"],
    "min": ["max"],
    "max": ["min"],
    "mean": ["sum"],
    "sum": ["mean"],
    "median": ["mean"],
    "floor": ["ceil"],
    "round": ["floor"],
    "argmin": ["argmax"],
    "argmax": ["argmin"],
    "any": ["all"],
    "all": ["any"],
    "zeros_like": ["ones_like"],
    "ones_like": ["zeros_like"],
    "jvp": [],
}
# Functions that may be forgotten, which leaves their first argument.
FORGOTTEN = {
    *("sqrt", "square", "abs", "clip", "sort", "stop_gradient", "exp2", "softplus", "cumsum"),
    *("fold_keys", "fold_in", "cummin", "tanh", "sigmoid"),
}
# For these, half the argument gives the root: sigma for sigma^2 in logarithms.
ROOTS = {"exp", "expm1", "log", "log1p"}
# Builtins and methods of these names have nothing to do with the functions above.
MODULES = {"jnp", "np", "jax", "lax", "math", "nn", "optax", "random", "tree"}
# A call of these is a check or concerns types, and is no formula.
SKIPPED_CALLS = {"isinstance", "hasattr", "getattr", "setattr", "issubdtype", "zip", "super", "named", "result_type"}
# The arguments of these functions that are used only for their shape or type.
SHAPES = {
    "broadcast": slice(1, None),
    "astype": slice(None),
    "zeros_like": slice(None),
    "ones_like": slice(None),
    "full_like": slice(1),
    "zeros": slice(None),
    "ones": slice(None),
    "full": slice(1),
    "eye": slice(None),
    "asarray": slice(1, None),
    "broadcast_to": slice(1, None),
    "reshape": slice(None),
}
SKIPPED_KEYWORDS = {
    *("dtype", "axis", "axes", "in_axes", "out_axes", "keepdims", "shape", "strict", "mode", "has_aux", "throw"),
    *("out_shardings", "donate_argnums", "max_steps", "static_argnums"),
}


def name_of(node: ast.AST) -> str:
    """The last part of a name: `sqrt` of jnp.sqrt."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def number(node: ast.AST) -> int | float | None:
    """The value of a constant, also with a minus before it; None if it is no number.

    >>> number(ast.parse("-0.5", mode="eval").body), number(ast.parse("x", mode="eval").body)
    (-0.5, None)
    """
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = number(node.operand)
        return None if value is None else -value
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _constant(value: float) -> ast.expr:
    return ast.parse(repr(value), mode="eval").body


def _like(node: ast.expr, **changes: object) -> ast.expr:
    """A copy of a node with other fields."""
    new = copy.copy(node)
    for field, value in changes.items():
        setattr(new, field, value)
    return new


def _call(function: str, *args: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(function, ast.Load()), list(args), [])


def _is_sequence(node: ast.AST) -> bool:
    strings = isinstance(node, ast.Constant) and isinstance(node.value, str)
    made = isinstance(node, ast.Call) and name_of(node.func) in ("set", "tuple", "list", "sorted", "dict", "frozenset")
    return strings or made or isinstance(node, ast.Tuple | ast.List | ast.ListComp | ast.JoinedStr | ast.Set | ast.Dict)


def _binary(node: ast.expr, *operators: type[ast.operator]) -> bool:
    """Whether the node is one of these operations, on numbers."""
    fits = isinstance(node, ast.BinOp) and isinstance(node.op, operators)
    return fits and not _is_sequence(node.left) and not _is_sequence(node.right)


def sign(node: ast.expr, parent: ast.AST, bound: frozenset[str]) -> Iterator[ast.expr]:
    """a + b for a - b, and a - b for a + b."""
    if _binary(node, ast.Add, ast.Sub):
        yield _like(node, op=ast.Sub() if isinstance(node.op, ast.Add) else ast.Add())


def term(node: ast.expr, parent: ast.AST, bound: frozenset[str]) -> Iterator[ast.expr]:
    """A term of a sum left out."""
    if _binary(node, ast.Add, ast.Sub):
        if not isinstance(number(node.right), int):
            yield node.left
        if isinstance(node.op, ast.Add) and not isinstance(number(node.left), int):
            yield node.right


def factor(node: ast.expr, parent: ast.AST, bound: frozenset[str]) -> Iterator[ast.expr]:
    """A factor of a product or a divisor left out, and a product for a quotient; numbers are left to `constant`."""
    if not _binary(node, ast.Mult, ast.Div):
        return
    if number(node.right) is None:
        yield node.left
    if number(node.left) is None and isinstance(node.op, ast.Mult):
        yield node.right
    if number(node.right) is None and isinstance(node.op, ast.Div):
        yield _like(node, op=ast.Mult())


def power(node: ast.expr, parent: ast.AST, bound: frozenset[str]) -> Iterator[ast.expr]:
    """x for x**2, sigma(t)**2 for sigma(t), a sum of squares for the square of a sum, or the other way."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        yield node.left
        if name_of(getattr(node.left, "func", ast.Pass())) in ("sum", "mean", "sum_dims"):
            inner = node.left.args
            yield _like(node.left, args=[ast.BinOp(inner[0], ast.Pow(), node.right), *inner[1:]])
    squared = isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Pow)
    if isinstance(node, ast.Call) and not squared:
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("alpha", "sigma"):
            yield ast.BinOp(node, ast.Pow(), _constant(2))
        inner = node.args[0] if node.args else None
        summed = name_of(node.func) in ("sum", "mean", "sum_dims")
        if summed and isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Pow):
            yield ast.BinOp(_like(node, args=[inner.left, *node.args[1:]]), ast.Pow(), inner.right)


def constant(node: ast.expr, parent: ast.AST, bound: frozenset[str]) -> Iterator[ast.expr]:
    """A constant factor doubled, or a constant term, unless the term is an integer."""
    if not _binary(node, ast.Mult, ast.Div, ast.Add, ast.Sub):
        return
    for side in ("left", "right"):
        value = number(getattr(node, side))
        if value and (isinstance(node.op, ast.Mult | ast.Div) or value != int(value)):
            yield _like(node, **{side: _constant(2 * value)})


def index(node: ast.expr, parent: ast.AST, bound: frozenset[str]) -> Iterator[ast.expr]:
    """An index, the end of a slice or of a range shifted by one; N - 1 for N as a divisor; t for t - 1."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub) and repr(number(node.right)) == "1":
        yield node.left
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
        for side in ("left", "right"):
            if _is_count(getattr(node, side)):
                yield _like(node, **{side: ast.BinOp(getattr(node, side), ast.Sub(), _constant(1))})
    if isinstance(node, ast.Subscript) and name_of(node.value) not in ("shape", "tuple", "dict", "list"):
        for other in _shifted(node.slice):
            yield _like(node, slice=other)
    if isinstance(node, ast.Call):
        yield from _other_range(node)


def _is_count(node: ast.expr) -> bool:
    length = isinstance(node, ast.Call) and name_of(node.func) == "len"
    along = isinstance(node, ast.Subscript) and name_of(node.value) == "shape" and not isinstance(node.slice, ast.Slice)
    return length or along or (isinstance(node, ast.Attribute) and node.attr in ("size", "levels"))


def _shifted(at: ast.expr) -> Iterator[ast.expr]:
    value = number(at)
    if isinstance(value, int):
        yield _constant(1 if value == 0 else value - 1)
    elif isinstance(at, ast.Slice):
        for end in ("lower", "upper"):
            value = number(getattr(at, end)) if getattr(at, end) else None
            if value:
                yield _like(at, **{end: _constant(value + 1) if value > 0 else _constant(value - 1)})
        if at.upper is not None and at.lower is None and number(at.upper) is None:
            yield ast.Slice(at.upper, None)
        if at.lower is not None and at.upper is None and number(at.lower) is None:
            yield ast.Slice(None, at.lower)
    elif isinstance(at, ast.Tuple):
        for i, part in enumerate(at.elts):
            for other in _shifted(part):
                yield ast.Tuple([*at.elts[:i], other, *at.elts[i + 1 :]], ast.Load())


def _other_range(node: ast.Call) -> Iterator[ast.expr]:
    name, args = name_of(node.func), node.args
    if any(name_of(part) == "ndim" for arg in args for part in ast.walk(arg)):
        return
    if name == "arange" and len(args) == 1:
        yield ast.BinOp(node, ast.Add(), _constant(1))
    elif name == "linspace" and len(args) == 3:
        longer = _like(node, args=[*args[:2], ast.BinOp(args[2], ast.Add(), _constant(1))])
        yield ast.Subscript(longer, ast.Slice(None, _constant(-1)), ast.Load())
        yield ast.Subscript(longer, ast.Slice(_constant(1), None), ast.Load())
    elif name in ("range", "fori_loop") and len(args) >= 2:
        yield _like(node, args=[ast.BinOp(args[0], ast.Add(), _constant(1)), *args[1:]])
        yield _like(node, args=[args[0], ast.BinOp(args[1], ast.Sub(), _constant(1)), *args[2:]])
    elif name == "range" and len(args) == 1:
        yield _like(node, args=[ast.BinOp(args[0], ast.Sub(), _constant(1))])


def function(node: ast.expr, parent: ast.AST, bound: frozenset[str]) -> Iterator[ast.expr]:
    """Another function: exp for expm1, max for min, the sum for the mean, the argument without its root."""
    if not isinstance(node, ast.Call):
        return
    name, args = name_of(node.func), node.args
    of_module = isinstance(node.func, ast.Attribute) and name_of(node.func.value) in MODULES
    if isinstance(node.func, ast.Name) or of_module or not args:
        for other in FUNCTIONS.get(name, []):
            if isinstance(node.func, ast.Attribute):
                yield _like(node, func=_like(node.func, attr=other))
            elif other in ("min", "max", "all", "any"):
                yield _like(node, func=ast.Name(other, ast.Load()))
    if args and name in ROOTS:
        yield _like(node, args=[ast.BinOp(_constant(0.5), ast.Mult(), args[0])])
    if args and name in FORGOTTEN:
        yield args[0]
    if name == "hypot":
        yield args[0]
        yield ast.BinOp(args[0], ast.Add(), args[1])
    if name == "arctan2":
        yield _like(node, args=args[::-1])
    if name in ("std", "var") and any(keyword.arg == "ddof" for keyword in node.keywords):
        yield _like(node, keywords=[keyword for keyword in node.keywords if keyword.arg != "ddof"])


def branch(node: ast.expr, parent: ast.AST, bound: frozenset[str]) -> Iterator[ast.expr]:
    """One branch of a choice always taken, or the branches of an `if` exchanged."""
    if isinstance(node, ast.Call) and name_of(node.func) == "where" and len(node.args) == 3:
        yield from node.args[1:]
    if isinstance(node, ast.IfExp) and not any(_is_none(part) for part in (node.body, node.orelse)):
        yield node.body
        yield node.orelse
    if isinstance(parent, ast.If) and node is parent.test and not _asks_none(node) and not _is_turned(node):
        yield ast.UnaryOp(ast.Not(), node)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _asks_none(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Is | ast.IsNot) for part in ast.walk(node))


def _is_turned(node: ast.expr) -> bool:
    """Whether `negation` or `comparison` already makes the opposite of the node."""
    equal = isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq | ast.In | ast.NotIn)
    return equal or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))


def negation(node: ast.expr, parent: ast.AST, bound: frozenset[str]) -> Iterator[ast.expr]:
    """A minus or a `not` left out."""
    if isinstance(node, ast.UnaryOp) and not isinstance(parent, ast.Subscript) and not isinstance(number(node), int):
        yield node.operand


COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


def comparison(node: ast.expr, parent: ast.AST, bound: frozenset[str]) -> Iterator[ast.expr]:
    """<= for <, != for ==, `or` for `and`."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        yield _like(node, ops=[COMPARISONS[type(node.ops[0])]()])
    if isinstance(node, ast.BoolOp) and not _asks_none(node):
        yield _like(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        yield _like(node, op=ast.BitOr() if isinstance(node.op, ast.BitAnd) else ast.BitAnd())


def name(node: ast.expr, parent: ast.AST, bound: frozenset[str]) -> Iterator[ast.expr]:
    """s for t, x for x0, alpha for sigma, one random key for its twin; or the two exchanged in a call."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        for twin in _twins(node.id, NAMES):
            if twin in bound:
                yield ast.Name(twin, ast.Load())
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and name_of(node.value) not in MODULES:
        for twin in _twins(node.attr, ATTRIBUTES):
            yield _like(node, attr=twin)
    if isinstance(node, ast.Call):
        for i, j in itertools.combinations(range(len(node.args)), 2):
            first, second = name_of(node.args[i]), name_of(node.args[j])
            if second in _twins(first, NAMES):
                args = list(node.args)
                args[i], args[j] = args[j], args[i]
                yield _like(node, args=args)


def _twins(name: str, pairs: list[tuple[str, str]]) -> list[str]:
    return [b if name == a else a for a, b in pairs if name in (a, b)] if name else []


OPERATORS: dict[str, Operator] = {
    operator.__name__: operator
    for operator in (sign, term, factor, power, constant, index, function, branch, negation, comparison, name)
}


class Mutant(NamedTuple):
    """A change of one expression of a function.

    Attributes:
        module: the file below scoregen/.
        function: its name, after those of the classes and functions that it is in.
        operator: the name of the operator, or "written".
        ordinal: the number among the mutants of this operator in this function.
        before, after: the expression, and the one in its place.
        meaning: what is broken, for a written mutant; else empty.
        way: where the expression is in the module's tree.
    """

    module: str
    function: str
    operator: str
    ordinal: int
    before: str
    after: str
    meaning: str
    way: Way

    @property
    def place(self) -> str:
        return f"{self.module}:{self.function}"

    @property
    def label(self) -> str:
        return f"{self.place} {self.operator} {self.ordinal}"

    @property
    def change(self) -> str:
        """The change in a line. The common beginning and end of long expressions are cut."""
        before, after = self.before, self.after
        if max(len(before), len(after)) <= 70:
            return f"{before} -> {after}"
        shortest = min(len(before), len(after))
        same = next((i for i in range(shortest) if before[i] != after[i]), shortest)
        rest = shortest - same
        ends = next((i for i in range(rest) if before[-1 - i] != after[-1 - i]), rest)
        return " -> ".join(_cut(text, same, len(text) - ends) for text in (before, after))

    def apply(self, tree: ast.Module) -> ast.Module:
        """Make the change in the module's tree, which must be unchanged."""
        node: ast.AST = tree
        for field, i in self.way[:-1]:
            node = getattr(node, field) if i is None else getattr(node, field)[i]
        field, i = self.way[-1]
        new = ast.parse(f"({self.after})", mode="eval").body
        if ast.unparse(getattr(node, field) if i is None else getattr(node, field)[i]) != self.before:
            raise ValueError(f"{self.label}: there is something else than {self.before}")
        if i is None:
            setattr(node, field, new)
        else:
            getattr(node, field)[i] = new
        return ast.fix_missing_locations(tree)


def _cut(text: str, begin: int, end: int, margin: int = 30, most: int = 60) -> str:
    """The text from `begin` to `end` with a margin on both sides."""
    middle = text[max(begin - margin, 0) : end + margin]
    if len(middle) > most + 2 * margin:
        half = margin + most // 2
        middle = f"{middle[:half]} ... {middle[-half:]}"
    return ("..." if begin > margin else "") + middle + ("..." if end + margin < len(text) else "")


class Function(NamedTuple):
    """A function in a module's tree: its qualified name without `<locals>`, where it is, and the names it can see."""

    name: str
    node: ast.FunctionDef
    way: Way
    bound: frozenset[str]


def functions(tree: ast.Module) -> Iterator[Function]:
    """All functions of a module, also methods and functions within functions.

    >>> source = "class A:\\n    def f(self, x):\\n        def g(y): return x + y\\n        return g"
    >>> [(found.name, sorted(found.bound)) for found in functions(ast.parse(source))]
    [('A.f', ['g', 'self', 'x']), ('A.f.g', ['g', 'self', 'x', 'y'])]
    """

    def inside(node: ast.AST, way: Way, prefix: str, bound: frozenset[str]) -> Iterator[Function]:
        for child, step in _children(node):
            if isinstance(child, ast.FunctionDef):
                names = bound | _bound(child)
                yield Function(prefix + child.name, child, (*way, step), names)
                yield from inside(child, (*way, step), f"{prefix}{child.name}.", names)
            elif isinstance(child, ast.ClassDef):
                yield from inside(child, (*way, step), f"{prefix}{child.name}.", bound)
            elif isinstance(child, ast.stmt | ast.ExceptHandler):
                yield from inside(child, (*way, step), prefix, bound)

    return inside(tree, (), "", frozenset())


def _children(node: ast.AST) -> Iterator[tuple[ast.AST, tuple[str, int | None]]]:
    for field, value in ast.iter_fields(node):
        if isinstance(value, ast.AST):
            yield value, (field, None)
        elif isinstance(value, list):
            yield from ((item, (field, i)) for i, item in enumerate(value) if isinstance(item, ast.AST))


def _bound(node: ast.FunctionDef) -> frozenset[str]:
    """The arguments of a function, and the names that it assigns outside the functions within."""
    args = node.args
    names = {arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)}

    def assigned(node: ast.AST) -> None:
        for child, _ in _children(node):
            if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                names.add(child.id)
            elif isinstance(child, ast.FunctionDef):
                names.add(child.name)
                continue
            if not isinstance(child, ast.Lambda | ast.ListComp | ast.GeneratorExp | ast.DictComp | ast.SetComp):
                assigned(child)

    assigned(node)
    return frozenset(names)


def key_twins(node: ast.FunctionDef) -> list[tuple[str, str]]:
    """The random keys that come from one split: pairs of names."""
    found = []
    for part in ast.walk(node):
        if isinstance(part, ast.Assign) and name_of(getattr(part.value, "func", part)) in ("split_keys", "split"):
            targets = getattr(part.targets[0], "elts", [])
            found += itertools.pairwise(map(name_of, targets))
    return [(a, b) for a, b in found if a and b]


def expressions(function: Function) -> Iterator[tuple[ast.expr, ast.AST, Way]]:
    """The expressions in a function's body that are formulas, with their parents, in the order of the source.

    Expressions in functions within it belong to those functions.
    """

    def inside(node: ast.AST, way: Way) -> Iterator[tuple[ast.expr, ast.AST, Way]]:
        for child, step in _children(node):
            if _is_formula(child, node, step[0]):
                if isinstance(child, ast.expr) and not isinstance(child, ast.Slice | ast.Starred):
                    yield child, node, (*way, step)
                yield from inside(child, (*way, step))

    for i, statement in enumerate(function.node.body):
        if _is_formula(statement, function.node, "body"):
            yield from inside(statement, (*function.way, ("body", i)))


def _is_formula(node: ast.AST, parent: ast.AST, field: str) -> bool:
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Raise | ast.Assert | ast.JoinedStr | ast.ExceptHandler):
        return False
    if isinstance(node, ast.Import | ast.ImportFrom | ast.arguments | ast.expr_context | ast.withitem):
        return False
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return False  # a docstring
    if isinstance(node, ast.Call):
        called = name_of(node.func)
        if called in SKIPPED_CALLS or called.lstrip("_").startswith(("check", "refuse")) or called.endswith("Error"):
            return False
    if isinstance(node, ast.keyword) and node.arg in SKIPPED_KEYWORDS:
        return False
    if isinstance(parent, ast.Attribute) and parent.attr in ("shape", "dtype", "ndim"):
        return False
    if isinstance(parent, ast.Call) and node in parent.args[SHAPES.get(name_of(parent.func), slice(0))]:
        return False
    if isinstance(parent, ast.If) and field in ("test", "body") and _is_check(parent):
        return False  # a check and its message
    return field not in ("annotation", "decorator_list", "returns", "targets", "target", "func_name")


def _is_check(node: ast.stmt) -> bool:
    """Whether it ends with an error: `raise`, or `if ...: raise`."""
    return isinstance(node, ast.Raise) or (isinstance(node, ast.If) and not node.orelse and _is_check(node.body[-1]))


def mutants(module: str, tree: ast.Module, operators: dict[str, Operator] | None = None) -> Iterator[Mutant]:
    """All mutants of a module, by function and in the order of the source. No two of a function are alike.

    >>> tree = ast.parse("def f(x):\\n    return 2 * x + 1")
    >>> [(found.operator, found.after) for found in mutants("f.py", tree)]
    [('sign', '2 * x - 1'), ('term', '1'), ('index', '2 * x'), ('factor', '2'), ('constant', '4 * x')]
    """
    for function in functions(tree):
        count = dict.fromkeys(operators or OPERATORS, 0)
        known = set()
        twins = key_twins(function.node)
        for node, parent, way in expressions(function):
            before = ast.unparse(node)
            for operator, changed in _changed(node, parent, function.bound, operators or OPERATORS, twins):
                after = ast.unparse(ast.fix_missing_locations(copy.deepcopy(changed)))
                if after == before or (way, after) in known:
                    continue
                known.add((way, after))
                yield Mutant(module, function.name, operator, count[operator], before, after, "", way)
                count[operator] += 1


def _changed(
    node: ast.expr,
    parent: ast.AST,
    bound: frozenset[str],
    operators: dict[str, Operator],
    twins: list[tuple[str, str]],
) -> Iterator[tuple[str, ast.expr]]:
    for operator, change in operators.items():
        for new in change(node, parent, bound):
            yield operator, new
    if "name" in operators and isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        for twin in _twins(node.id, twins):
            yield "name", ast.Name(twin, ast.Load())


class Written(NamedTuple):
    """A mistake that no operator makes, or that must always be tried.

    Attributes:
        module: the file below scoregen/.
        function: its name, as in `Mutant`.
        find: the expression to find. A name of an underscore and a capital letter is a hole for any expression. Equal
            names stand for equal expressions.
        put: the expression to put in its place, with the same holes.
        meaning: what is broken.
        guards: the test modules that guard it; () for the guards of the module's target.
    """

    module: str
    function: str
    find: str
    put: str
    meaning: str
    guards: tuple[str, ...] = ()

    def mutant(self, tree: ast.Module) -> Mutant:
        """Raises ValueError unless the function has exactly one place with such an expression."""
        pattern = ast.parse(self.find, mode="eval").body
        named = [function for function in functions(tree) if function.name == self.function]
        if not named:
            raise ValueError(f"{self.module}: there is no function {self.function} ({self.meaning})")
        found = [
            (node, way, holes)
            for function in named
            for node, way in _all_expressions(function)
            if (holes := match(pattern, node)) is not None
        ]
        if len(found) != 1:
            raise ValueError(
                f"{self.module}:{self.function} has {len(found)} places like {self.find}, not one ({self.meaning})"
            )
        node, way, holes = found[0]
        after = ast.unparse(_filled(ast.parse(self.put, mode="eval").body, holes))
        return Mutant(self.module, self.function, "written", 0, ast.unparse(node), after, self.meaning, way)


def _all_expressions(function: Function) -> Iterator[tuple[ast.expr, Way]]:
    """Every expression of a function's body, formula or not, except in the functions within."""

    def inside(node: ast.AST, way: Way) -> Iterator[tuple[ast.expr, Way]]:
        for child, step in _children(node):
            if not isinstance(child, ast.FunctionDef | ast.ClassDef):
                if isinstance(child, ast.expr):
                    yield child, (*way, step)
                yield from inside(child, (*way, step))

    for i, statement in enumerate(function.node.body):
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef):
            yield from inside(statement, (*function.way, ("body", i)))


def _is_hole(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and len(node.id) == 2 and node.id[0] == "_" and node.id[1].isupper()


def match(pattern: ast.AST, node: ast.AST) -> dict[str, ast.expr] | None:
    """The expressions that the holes of a pattern stand for if the pattern matches the node; else None.

    >>> find, node = (ast.parse(text, mode="eval").body for text in ("_A / jnp.sqrt(_B)", "x / jnp.sqrt(2 * h)"))
    >>> {name: ast.unparse(part) for name, part in match(find, node).items()}
    {'_A': 'x', '_B': '2 * h'}
    """
    holes: dict[str, ast.expr] = {}

    def same(pattern: object, node: object) -> bool:
        if isinstance(pattern, ast.Name) and _is_hole(pattern) and isinstance(node, ast.expr):
            return ast.unparse(holes.setdefault(pattern.id, node)) == ast.unparse(node)
        if isinstance(pattern, ast.AST):
            fields = (field for field in pattern._fields if field not in ("ctx", "kind"))
            return type(pattern) is type(node) and all(same(getattr(pattern, f), getattr(node, f)) for f in fields)
        if isinstance(pattern, list):
            return isinstance(node, list) and len(pattern) == len(node) and all(map(same, pattern, node))
        return type(pattern) is type(node) and pattern == node

    return holes if same(pattern, node) else None


def _filled(node: ast.AST, holes: dict[str, ast.expr]) -> ast.AST:
    class Fill(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return holes[node.id] if _is_hole(node) else node

    return ast.fix_missing_locations(Fill().visit(node))


def read(root: Path, module: str) -> ast.Module:
    """The tree of a module below scoregen/."""
    return ast.parse((root / "scoregen" / module).read_text())
