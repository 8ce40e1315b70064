"""The mutations can be made at their places. `make mutate` measures whether the tests catch them."""

import ast
import collections
import fnmatch
import shutil
from typing import ClassVar

import pytest
from mutations import mutate
from mutations.mutate import ROOT, Copy, Result, every_mutant, guards, sampled, table
from mutations.operators import OPERATORS, Written, functions, mutants, read
from mutations.targets import EQUIVALENT, TARGETS, WRITTEN, target_functions

SAMPLE = '''
def step(process, key, x, x0, t, s, values, std=2.0):
    """Not 2 * x."""
    if not std > 0:
        raise ValueError(f"std={std - 1}")
    first, second = split_keys(key, 2)
    q = jnp.sqrt(values[t - 1] ** 2) + 0.5 * jnp.exp(-x)
    noise = normal(first, x.shape, x.dtype) / jnp.std(values, ddof=1)
    total = jnp.mean(x ** 2) if t < 3 else jnp.minimum(x, x0)
    for i in range(1, n):
        total = total + process.sigma(t) * move(x, x0)

    def inner(y):
        return y * s

    return jnp.where(t == 0, q, total), noise, inner
'''


@pytest.fixture(scope="module")
def everything():
    return every_mutant(ROOT)


@pytest.fixture(scope="module")
def made():
    return list(mutants("sample.py", ast.parse(SAMPLE)))


@pytest.mark.parametrize(
    ("operator", "change"),
    [
        ("sign", "t - 1 -> t + 1"),
        ("sign", "total + process.sigma(t) * move(x, x0) -> total - process.sigma(t) * move(x, x0)"),
        ("term", "total + process.sigma(t) * move(x, x0) -> total"),
        ("term", "total + process.sigma(t) * move(x, x0) -> process.sigma(t) * move(x, x0)"),
        ("factor", "process.sigma(t) * move(x, x0) -> process.sigma(t)"),
        ("factor", "process.sigma(t) * move(x, x0) -> move(x, x0)"),
        ("factor", "y * s -> s"),
        ("power", "x ** 2 -> x"),
        ("power", "process.sigma(t) -> process.sigma(t) ** 2"),
        ("power", "jnp.mean(x ** 2) -> jnp.mean(x) ** 2"),
        ("constant", "0.5 * jnp.exp(-x) -> 1.0 * jnp.exp(-x)"),
        ("index", "t - 1 -> t"),
        ("index", "range(1, n) -> range(1 + 1, n)"),
        ("index", "range(1, n) -> range(1, n - 1)"),
        ("function", "jnp.sqrt(values[t - 1] ** 2) -> values[t - 1] ** 2"),
        ("function", "jnp.exp(-x) -> jnp.expm1(-x)"),
        ("function", "jnp.exp(-x) -> jnp.exp(0.5 * -x)"),
        ("function", "jnp.std(values, ddof=1) -> jnp.std(values)"),
        ("function", "jnp.minimum(x, x0) -> jnp.maximum(x, x0)"),
        ("function", "jnp.mean(x ** 2) -> jnp.sum(x ** 2)"),
        ("branch", "jnp.where(t == 0, q, total) -> q"),
        ("branch", "jnp.where(t == 0, q, total) -> total"),
        ("negation", "-x -> x"),
        ("comparison", "t < 3 -> t <= 3"),
        ("comparison", "t == 0 -> t != 0"),
        ("name", "move(x, x0) -> move(x0, x)"),
        ("name", "x0 -> x"),
        ("name", "t -> s"),
        ("name", "first -> second"),
        ("name", "process.sigma -> process.alpha"),
    ],
)
def test_an_operator_makes(made, operator, change):
    assert change in {mutant.change for mutant in made if mutant.operator == operator}


def test_what_is_no_formula_stays(made):
    """Docstrings, default values, checks and their messages, shapes and types are not mutated."""
    tree = ast.parse(SAMPLE)
    for mutant in made:
        (step,) = mutant.apply(ast.parse(SAMPLE)).body
        assert ast.unparse(step.body[:2]) == ast.unparse(tree.body[0].body[:2])
        assert ast.unparse(step.args) == ast.unparse(tree.body[0].args)
        assert "x.shape, x.dtype" in ast.unparse(step)


def test_no_two_mutants_are_alike(made):
    sources = [ast.unparse(mutant.apply(ast.parse(SAMPLE))) for mutant in made]
    assert len(set(sources)) == len(sources) and ast.unparse(ast.parse(SAMPLE)) not in sources
    assert len({(mutant.label, mutant.after) for mutant in made}) == len({mutant.label for mutant in made}) == len(made)
    assert set(OPERATORS) == {mutant.operator for mutant in made}


def test_functions_within_functions_are_their_own(made):
    assert {mutant.function for mutant in made} == {"step", "step.inner"}
    assert {mutant.change for mutant in made if mutant.function == "step.inner"} >= {"y * s -> y", "s -> t"}


@pytest.mark.parametrize("find", ["jnp.where(_A == 1, _B, _C)", "x", "normal(_A, x.shape, _A)"])
def test_a_written_mutation_needs_one_place(find):
    with pytest.raises(ValueError, match="places like"):
        Written("sample.py", "step", find, "0", "nothing").mutant(ast.parse(SAMPLE))


def test_a_written_mutation_is_found_by_its_form():
    written = Written("sample.py", "step", "_A / jnp.std(_B, ddof=1)", "_A / jnp.std(_B)", "the divisor N - 1")
    mutated = written.mutant(ast.parse(SAMPLE.replace("values, ddof", "values,\n        ddof"))).apply(
        ast.parse(SAMPLE)
    )
    assert ast.unparse(mutated) == ast.unparse(ast.parse(SAMPLE.replace("values, ddof=1", "values")))


@pytest.mark.parametrize("written", WRITTEN, ids=lambda written: written.meaning)
def test_what_is_written_by_hand_can_be_made(written):
    mutant = written.mutant(read(ROOT, written.module))  # ValueError unless it has one place
    compile(mutant.apply(read(ROOT, written.module)), written.module, "exec")
    assert mutant.before != mutant.after


@pytest.mark.slow
def test_every_mutant_can_be_made(everything):
    """Checked for one mutant of each module."""
    found, _ = everything
    assert len(found) > 2000
    for mutant in {mutant.module: mutant for mutant in found}.values():
        compile(mutant.apply(read(ROOT, mutant.module)), mutant.module, "exec")


def test_every_target_is_there(everything):
    found, _ = everything
    for module, names in target_functions(ROOT).items():
        assert names, f"no function of {module} is mutated"
    for target in TARGETS:
        paths = list((ROOT / "scoregen").glob(target.modules))
        assert paths, f"there is no module {target.modules}"
        names = [function.name for path in paths for function in functions(ast.parse(path.read_text()))]
        for pattern in target.functions:
            assert fnmatch.filter(names, pattern), f"there is no function {pattern} in {target.modules}"
    for guard in {guard for mutant in found for guard in guards(mutant)}:
        assert (ROOT / guard).exists(), f"{guard} guards a target and is not there"


def test_every_equivalent_mutant_is_there(everything):
    """Delete an entry that no longer matches a mutant."""
    _, equivalent = everything
    assert {entry for _, entry in equivalent} == set(EQUIVALENT)


def test_a_sample_depends_on_the_mutant_alone(everything):
    found, _ = everything
    few = sampled(found, 5, 0)
    count = collections.Counter(mutant.module for mutant in few if mutant.operator != "written")
    assert set(count.values()) <= set(range(1, 6)) and max(count.values()) == 5
    assert set(few) <= set(sampled(found, 6, 0)) and set(few) != set(sampled(found, 5, 1))
    one = [mutant for mutant in found if mutant.module == "denoiser.py"]
    assert sampled(one, 5, 0) == [mutant for mutant in few if mutant.module == "denoiser.py"]


class Recorded:
    """Replaces `Copy`: every guard passes unless its name is in `broken`, and the mutants of `posterior` are caught."""

    broken = ()
    slow = ()  # the functions whose mutants a slow test catches
    first: ClassVar[list] = []

    def __init__(self, base, root, compiled):
        pass

    def test(self, tests, tier):
        return int((tests[0], tier) in self.broken), "1 failed"

    def run(self, mutant, tier, seconds, first=()):
        if tier == mutate.QUICK:
            self.first.append(first)
        elif mutant.function in self.slow:
            return Result(mutant, "test_process.py::test_slowly", 1.0)
        return Result(mutant, "test_process.py::test_bayes" if mutant.function == "posterior" else "survived", 1.0)

    def close(self):
        pass


def run_recorded(monkeypatch, tmp_path, everything, **fields):
    monkeypatch.setattr(mutate, "Copy", type("Copy", (Recorded,), {"first": [], **fields}))
    monkeypatch.setattr(mutate, "COMPILED", tmp_path / "kept")
    found = [mutant for mutant in everything[0] if mutant.module == "process/kernel.py"]
    chosen = [next(m for m in found if m.function == name) for name in ("posterior", "perturb")] + [found[-1]]
    return chosen, mutate.run(chosen, tmp_path, tmp_path, 1), mutate.Copy.first


def test_what_caught_a_mutant_is_tried_first_with_the_next(monkeypatch, tmp_path, everything):
    chosen, results, first = run_recorded(monkeypatch, tmp_path, everything)
    assert [result.mutant for result in results] == chosen
    assert [result.how for result in results] == ["test_process.py::test_bayes", "survived", "survived"]
    assert first == [[], ["tests/test_process.py::test_bayes"], ["tests/test_process.py::test_bayes"]]


def test_a_guard_that_fails_without_a_mutation_ends_it(monkeypatch, tmp_path, everything):
    with pytest.raises(SystemExit, match=r"test_bound\.py fails without a mutation, so it can catch none"):
        run_recorded(monkeypatch, tmp_path / "a", everything, broken=[("tests/test_bound.py", mutate.QUICK)])
    slow = {"slow": ["perturb"]}
    _, results, _ = run_recorded(monkeypatch, tmp_path / "b", everything, **slow)
    assert [result.how for result in results][1] == "test_process.py::test_slowly"
    broken = [("tests/test_process.py::test_slowly", mutate.SLOW)]
    with pytest.raises(SystemExit, match=r"test_slowly fails without a mutation, so it can catch none"):
        run_recorded(monkeypatch, tmp_path / "c", everything, broken=broken, **slow)


@pytest.mark.slow
def test_mutants_are_run(tmp_path):
    """One mutant is caught, one survives, and one never ends; afterwards the module has its old text again."""
    base = tmp_path / "base"
    (base / "scoregen").mkdir(parents=True)
    shutil.copytree(ROOT / "tests" / "mutations", base / "tests" / "mutations")
    for name in ("conftest.py", "tiers.py"):
        shutil.copy(ROOT / "tests" / name, base / "tests")
    shutil.copy(ROOT / "setup.cfg", base)
    (base / "scoregen" / "__init__.py").write_text("")
    source = "def count(n, unused):\n    while n > 2:\n        n = n - 1\n    return n + 0.5 * (unused - 1)\n"
    (base / "scoregen" / "likelihood.py").write_text(source)
    (base / "tests" / "test_likelihood.py").write_text(
        "import pytest\nfrom scoregen.likelihood import count\n\n"
        "@pytest.mark.slow\ndef test_count():\n    assert count(4, 1) == 2\n"
    )
    found = {mutant.change: mutant for mutant in mutants("likelihood.py", ast.parse(source))}
    copy = Copy(base, tmp_path / "copy", tmp_path / "compiled")
    try:
        assert [copy.test(["tests/test_likelihood.py"], tier)[0] for tier in (mutate.QUICK, mutate.SLOW)] == [0, 0]
        changes = ["n > 2 -> n >= 2", "0.5 * (unused - 1) -> 1.0 * (unused - 1)", "n - 1 -> n"]
        results = [copy.run(found[change], mutate.SLOW, 3.0) for change in changes]
    finally:
        copy.close()
    assert [result.how for result in results] == ["test_likelihood.py::test_count", "survived", "timeout"]
    assert (tmp_path / "copy" / "scoregen" / "likelihood.py").read_text() == source
    lines = table(results, list(found.values()), [])
    assert f"| `likelihood.py` | {len(found)} | 0 | 3 | 2 | 1 |" in lines
    assert lines[-2].endswith("| **none** |")
