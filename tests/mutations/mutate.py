"""Break a formula, and see a test fail: one expression at a time, in a copy of the package.

    python tests/mutations/mutate.py                        a sample of all modules (`make mutate`)
    python tests/mutations/mutate.py --only bound ddpm      mutants whose place or change has one of these words
    python tests/mutations/mutate.py --operator sign        mutants of this operator
    python tests/mutations/mutate.py --all                  all of them, which takes hours
    python tests/mutations/mutate.py --list --all           list them, and run nothing
    python tests/mutations/mutate.py --sample 20 --seed 1   another sample, of 20 mutants a module
    python tests/mutations/mutate.py --out table.md         and write the table down

`operators.py` says which mistakes are made, `targets.py` in which functions, and which tests guard them. A mutant is
caught if a guard fails, if the mutant cannot be imported, or if the guards exceed the time limit: a minute plus three
times their time without the mutant, or half an hour for slow tests. A mutant that no guard catches is a hole in the
tests; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import concurrent.futures
import contextlib
import hashlib
import json
import os
import py_compile
import queue
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from mutations.operators import OPERATORS, Mutant, mutants, read
from mutations.targets import EQUIVALENT, WRITTEN, Equivalent, guards, is_mutated, modules

ROOT = Path(__file__).parent.parent.parent
LONG = "tests/test_conformance.py::test_the_whole_matrix"  # minutes, and the other guards check the same formulas
SAMPLE = 2  # mutants of a module
QUICK, SLOW = "not slow", "slow"  # the tests of a tier, for pytest's -m
LIMIT = 1800  # seconds for the slow tests of a mutant
# The tests' cache of compiled programs. Most programs are the same in every mutant.
COMPILED = ROOT / ".pytest_cache" / "compiled"


class Result(NamedTuple):
    """How a mutant ended: `how` is the test that caught it, "timeout", "survived" or "the process crashed"."""

    mutant: Mutant
    how: str
    seconds: float

    @property
    def test(self) -> str | None:
        """The test that caught it, as pytest names it."""
        if "::" not in self.how:
            return None
        return self.how if self.how.startswith("scoregen/") else f"tests/{self.how}"


def every_mutant(root: Path) -> tuple[list[Mutant], list[tuple[Mutant, Equivalent]]]:
    """The mutants that a test should catch, the written ones first, and the equivalent ones."""
    found, equivalent = [written.mutant(read(root, written.module)) for written in WRITTEN], []
    for module, target in modules(root):
        for mutant in mutants(module, read(root, module)):
            if is_mutated(mutant.function, target):
                allowed = next((entry for entry in EQUIVALENT if entry.matches(mutant)), None)
                found.append(mutant) if allowed is None else equivalent.append((mutant, allowed))
    return found, equivalent


def sampled(found: list[Mutant], size: int, seed: int) -> list[Mutant]:
    """At most `size` mutants of each module, and all written ones.

    The choice depends on the seed and on each mutant alone: a change of one function keeps the choice in the others.
    """

    def rank(mutant: Mutant) -> bytes:
        text = f"{seed} {mutant.place} {mutant.operator} {mutant.before} -> {mutant.after}"
        return hashlib.sha256(text.encode()).digest()

    kept = {mutant.label for mutant in found if mutant.operator == "written"}
    for module in dict.fromkeys(mutant.module for mutant in found):
        those = [mutant for mutant in found if mutant.module == module and mutant.operator != "written"]
        kept |= {mutant.label + mutant.after for mutant in sorted(those, key=rank)[:size]}
    return [m for m in found if m.operator == "written" or m.label + m.after in kept]


class Copy:
    """A copy of the package and its tests, and a process that runs tests there.

    The process has imported all that the tests need, except scoregen. It forks for each run, so no run waits for
    imports.
    """

    def __init__(self, base: Path, root: Path, compiled: Path):
        self.root = root
        shutil.copytree(base, root)
        environment = os.environ | {
            "PYTHONPATH": str(root),
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.server = subprocess.Popen(
            [sys.executable, str(root / "tests/mutations/mutate.py"), "--serve"],
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def test(self, tests: list[str], tier: str, seconds: float = 3600.0) -> tuple[int | None, str]:
        """Run the tests of a tier until one fails: pytest's exit code, 0 if there are none, None if they took longer.

        The second part is the end of the output.
        """
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps({"tests": tests, "tier": tier, "seconds": seconds}) + "\n")
        self.server.stdin.flush()
        answer = self.server.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that runs tests in {self.root} ended with {self.server.wait()}")
        reply = json.loads(answer)
        return reply["code"], reply["output"]

    def run(self, mutant: Mutant, tier: str, seconds: float, first: Iterable[str] = ()) -> Result:
        """Run the tests in `first`, then the guards of a mutant, until a test fails; of both the tests of a tier."""
        path = self.root / "scoregen" / mutant.module
        text, begin = path.read_text(), time.monotonic()
        try:
            path.write_text(ast.unparse(mutant.apply(ast.parse(text))) + "\n")
            code, output = 0, ""
            for tests in (list(first), list(guards(mutant))):
                if tests and code not in (1, None):
                    code, output = self.test(tests, tier, seconds)
        finally:
            path.write_text(text)
        took = time.monotonic() - begin
        if code is None:
            return Result(mutant, "timeout", took)
        if code == 0:
            return Result(mutant, "survived", took)
        found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", output, re.MULTILINE)
        if found is None and code > 0:
            raise RuntimeError(f"{mutant.label}: the tests did not run\n{output}")
        return Result(mutant, "the process crashed" if found is None else found[1].removeprefix("tests/"), took)

    def close(self) -> None:
        """End the process, which ends its running tests."""
        self.server.terminate()
        with self.server:  # waits for it, and closes the pipes
            pass


def serve() -> None:
    """The process of a copy: a line of JSON for each run, {"tests", "tier", "seconds"} -> {"code", "output"}."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    flags, parent = os.environ.get("XLA_FLAGS"), os.getppid()
    runpy.run_path("tests/conftest.py")
    if flags is None:  # each run imports conftest.py again, and it adds to the flags
        del os.environ["XLA_FLAGS"]
    else:
        os.environ["XLA_FLAGS"] = flags
    import flax.linen
    import jax.numpy
    import optax
    import pytest
    import scipy.stats

    del flax, jax, optax, scipy
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        for line in sys.stdin:
            request = json.loads(line)
            process = os.fork()
            if not process:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.setsid()
                with output.open("w") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                arguments = ["-x", "-q", "--no-header", "--tb=line", "-p", "no:xdist", "-p", "no:cacheprovider"]
                code: Any = 3
                try:
                    found = pytest.main([*arguments, "-m", request["tier"], "--deselect", LONG, *request["tests"]])
                    code = 0 if found == pytest.ExitCode.NO_TESTS_COLLECTED else found
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(int(code))
            code = _wait(process, request["seconds"], parent)
            text = output.read_text(errors="replace") if output.exists() else ""
            print(json.dumps({"code": code, "output": text[-4000:]}), flush=True)


def _wait(process: int, seconds: float, parent: int) -> int | None:
    """The exit code of a child; None if it is killed, at the time limit or because this process or its parent ends."""
    end, pause, found = time.monotonic() + seconds, 0.01, 0
    try:
        while time.monotonic() < end and os.getppid() == parent:
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(pause)
            pause = min(1.5 * pause, 0.2)
        return None
    finally:
        if not found:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)


def snapshot(folder: Path) -> Path:
    """A copy of all that the tests need. Its bytecode is checked by the source's hash, so a mutant does not use it."""
    for name in ("scoregen", "configs", "tests", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    shutil.copy(ROOT / "setup.cfg", folder)
    hashed = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(folder / "scoregen", quiet=2, invalidation_mode=hashed)
    return folder


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        pass  # a running test has removed it from the cache
    except OSError:
        shutil.copy(source, target)


def run(chosen: list[Mutant], base: Path, folder: Path, workers: int) -> list[Result]:
    """Run the quick tests of every guard without a mutation, which have to pass, and then the mutants.

    The slow tests of a guard run only for mutants that pass all quick tests. A slow test that fails then has to pass
    without the mutation.
    """
    # A temporary copy of the cache: the programs of mutants are of no use later.
    COMPILED.mkdir(parents=True, exist_ok=True)
    compiled = folder / "compiled"
    copies: queue.Queue[Copy] = queue.Queue()
    seconds: dict[str, float] = {}  # guard -> the time of its quick tests without a mutation
    sound: set[str] = set()  # slow tests that pass without a mutation
    catchers: dict[str, list[str]] = {}

    def passes(copy: Copy, test: str, tier: str) -> str | None:
        """None if a test, or a module of tests, passes without a mutation; else a line about it."""
        code, output = copy.test([test], tier)
        return f"{test} fails without a mutation, so it can catch none:\n{output}" if code != 0 else None

    def quick(guard: str) -> str | None:
        copy, begin = copies.get(), time.monotonic()
        try:
            return passes(copy, guard, QUICK)
        finally:
            seconds[guard] = time.monotonic() - begin
            copies.put(copy)

    def slow(copy: Copy, mutant: Mutant, first: Iterable[str]) -> Result:
        result = copy.run(mutant, SLOW, LIMIT, first)
        if result.test and result.test not in sound:
            if problem := passes(copy, result.test, SLOW):
                raise SystemExit(problem)
            sound.add(result.test)
        return result

    def one(mutant: Mutant) -> Result:
        copy = copies.get()
        # The tests that caught other mutants of the function, or of the module, come first.
        lists = [(catchers.setdefault(mutant.place, []), 3), (catchers.setdefault(mutant.module, []), 5)]
        first = dict.fromkeys(test for known, count in lists for test in known[: -count - 1 : -1])
        try:
            limit = 60 + 3 * sum(seconds[guard] for guard in guards(mutant))
            result = copy.run(mutant, QUICK, limit, list(first))
            if result.how == "survived":
                result = slow(copy, mutant, first)
        finally:
            copies.put(copy)
        for known, _ in lists if result.test else []:
            known[:] = [*(test for test in known if test != result.test), result.test]
        return result

    # On every exit, no waiting mutant is started, and the running tests are ended.
    with contextlib.ExitStack() as stack:
        pool = concurrent.futures.ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        shutil.copytree(COMPILED, compiled, copy_function=_link)
        for i in range(workers):
            copies.put(copy := Copy(base, folder / str(i), compiled))
            stack.callback(copy.close)
        needed = list(dict.fromkeys(guard for mutant in chosen for guard in guards(mutant)))
        broken = [problem for problem in pool.map(quick, needed) if problem]
        if broken:
            raise SystemExit("\n\n".join(broken))
        print(f"the quick guards pass, in {sum(seconds.values()):.0f} s; {len(chosen)} mutants", flush=True)
        results = []
        for result in pool.map(one, chosen):
            results.append(result)
            mutant, how = result.mutant, "SURVIVED" if result.how == "survived" else "caught  "
            what = mutant.meaning or mutant.change
            print(f"{how} {mutant.label}: {what}  [{result.how}, {result.seconds:.0f} s]", flush=True)
    return results


def table(results: list[Result], found: list[Mutant], equivalent: list[tuple[Mutant, Equivalent]]) -> list[str]:
    """The results in Markdown: counts by module, then a row for each mutant that was tried."""

    def code(text: str) -> str:
        return "`" + text.replace("|", "\\|") + "`"

    columns = {
        "mutants": Counter(mutant.module for mutant in found),
        "equivalent": Counter(mutant.module for mutant, _ in equivalent),
        "tried": Counter(result.mutant.module for result in results),
        "caught": Counter(result.mutant.module for result in results if result.how != "survived"),
        "by the time limit": Counter(result.mutant.module for result in results if result.how == "timeout"),
    }
    lines = [f"| module | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    tried = list(columns["tried"])
    lines += [f"| `{module}` | {' | '.join(str(column[module]) for column in columns.values())} |" for module in tried]
    totals = (sum(column[module] for module in tried) for column in columns.values())
    lines += [f"| all | {' | '.join(map(str, totals))} |", ""]
    lines += ["| place | what is broken | a test that fails |", "|---|---|---|"]
    for result in results:
        mutant, by = result.mutant, "**none**" if result.how == "survived" else code(result.how)
        lines.append(f"| {code(mutant.place)} | {mutant.meaning or code(mutant.change)} | {by} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser("mutate.py", description="Break a formula, and see a test fail.")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="mutants whose place or change has one")
    parser.add_argument("--operator", action="append", default=[], choices=[*OPERATORS, "written"])
    parser.add_argument("--all", action="store_true", help="no sample; so it is with --only and --operator")
    parser.add_argument("--sample", type=int, metavar="N", help=f"mutants of a module ({SAMPLE})")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--list", action="store_true", help="print the mutants, and run nothing")
    parser.add_argument("--out", type=Path, help="a file to write the table to")
    parser.add_argument("--workers", type=int, default=2, help="how many at a time")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        base = snapshot(Path(folder) / "base")
        found, equivalent = every_mutant(base)
        chosen = [
            mutant
            for mutant in found
            if (not options.operator or mutant.operator in options.operator)
            and (
                not options.only
                or any(word in f"{mutant.label} {mutant.change} {mutant.meaning}" for word in options.only)
            )
        ]
        narrowed = options.all or options.only or options.operator
        if options.sample is not None or not narrowed:
            chosen = sampled(chosen, SAMPLE if options.sample is None else options.sample, options.seed)
        if options.list:
            for mutant in chosen:
                print(f"{mutant.label}: {mutant.meaning or mutant.change}")
            print(f"{len(chosen)} of {len(found)} mutants; {len(equivalent)} more are equivalent")
            return 0
        if not chosen:
            parser.error("there is no such mutant")
        results = run(chosen, base, Path(folder), options.workers)
    survived = [result for result in results if result.how == "survived"]
    if options.out is not None:
        options.out.write_text("\n".join(table(results, found, equivalent)) + "\n")
    print(f"{len(results)} mutants, {len(results) - len(survived)} caught.")
    for result in survived:
        print(f"SURVIVED {result.mutant.label}: {result.mutant.meaning or result.mutant.change}")
    return int(bool(survived))


if __name__ == "__main__":
    sys.exit(main())
