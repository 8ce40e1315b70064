"""The conformance matrix, in part and whole: it passes, it finds errors, and it includes new entries of the tables."""

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from scoregen.app import conformance as command
from scoregen.app.conformance import main
from scoregen.denoiser import TARGETS
from scoregen.losses import DSM, LOSSES, Loss
from scoregen.losses.matching import sum_dims
from scoregen.process import PROCESSES, VP, Flow, snr_loss_rate
from scoregen.testing import check_loss, check_process, check_target, conformance
from scoregen.testing.conformance import OUTPUTS, WEIGHTS, Cell, check, columns, combinations, table

# With these chains `refused` lists the refused cells of the package's own entries, so that no rule refuses too much.
CHAINS = ("ddpm", "cosine", "ncsn", "betas", "sigmas")


def refused(process, target, loss):
    """Refused: the time derivative of a chain, alpha = 0 at the noisiest level, step variances in continuous time."""
    if process in CHAINS:
        return target == "velocity" or loss == "flow"
    return (process == "flow" and target in ("eps", "score")) or loss == "hybrid"


def as_expected(cells):
    return [
        cell for cell in cells if cell.loss in WEIGHTS and refused(*_names(cell)) != (cell.refused is not None)
    ] == []


def _names(cell):
    return cell.process, cell.target, cell.loss


def test_the_matrix_has_every_entry_of_the_tables():
    """`OUTPUTS` and `WEIGHTS` name entries of the tables. The matrix has every entry and both forms of SSM."""
    assert {*OUTPUTS} <= {*TARGETS} and {*WEIGHTS} <= {*columns()}
    assert {name.split("-")[0] for name in columns()} == {*LOSSES}
    assert {columns()[name].variance_reduced for name in ("ssm", "ssm-plain")} == {True, False}
    assert {(process, target) for process, target, _ in combinations()} == {(p, t) for p in PROCESSES for t in TARGETS}


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
def test_a_part_of_the_matrix(process):
    """Every process with every loss, each under one target."""
    cells = [check(*names) for names in combinations(small=True) if names[0] == process]
    assert len(cells) == len(columns()) and as_expected(cells)
    assert all(cell.passed for cell in cells), [cell for cell in cells if not cell.passed]
    compared = [cell for cell in cells if cell.refused is None and cell.note is None]
    assert all(cell.error > 0 for cell in compared), "an error of exactly nothing is none measured"
    assert len(compared) >= 6


@pytest.mark.slow
def test_the_whole_matrix(tmp_path, capsys):
    assert main([f"--out={tmp_path / 'matrix.md'}"]) == 0
    lines = (tmp_path / "matrix.md").read_text().splitlines()
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    head, rows = rows[0], rows[2:]
    assert len(rows) == len(PROCESSES) * len(TARGETS)
    assert all(cell for row in rows for cell in row), "the matrix has no blank"
    found = {(*row[:2], name): not cell[0].isdigit() for row in rows for name, cell in zip(head, row, strict=True)}
    for names, letter in found.items():
        if names[2] in WEIGHTS:
            assert letter == refused(*names), names
    assert ", 0 failed, " in capsys.readouterr().out


def wrong(change):
    """DSM with this change, to put in the place of the loss `dsm`."""

    class Wrong(DSM):
        def __call__(self, denoiser, noised, key):
            return change(DSM(), denoiser, noised, key)

    return Wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda loss, *args: 2.0 * loss(*args),
        lambda loss, denoiser, noised, key: loss(denoiser, noised._replace(x=1.01 * noised.x), key),
        lambda loss, *args: jnp.nan * loss(*args),
    ],
    ids=["twice", "moved", "nan"],
)
def test_an_error_in_a_loss_fails(monkeypatch, change):
    monkeypatch.setitem(LOSSES, "dsm", wrong(change))
    cell = check("vp", "v", "dsm")
    assert not cell.passed
    assert "FAILED" in table([cell])


@pytest.mark.slow
def test_an_error_in_a_target_fails(monkeypatch):
    """The matrix has its own formula for a shipped target's output, so it notices a wrong sign in `TARGETS`."""
    monkeypatch.setitem(TARGETS, "v", lambda process, t: (process.sigma(t), process.alpha(t)))
    assert not check("vp", "v", "dsm").passed


@dataclasses.dataclass(frozen=True)
class Scaled(Loss):
    """A loss as a user would add it: a formula, its weight, two forms."""

    power: float = 1.0
    mean: bool = False
    claimed = 1.0

    def __call__(self, denoiser, noised, key):
        factor = snr_loss_rate(denoiser.process, noised.t) ** self.power
        error = sum_dims((noised.x0 - denoiser(noised.x, noised.t).x0) ** 2)
        return factor.astype(error.dtype) * error / (noised.x0[0].size if self.mean else 1)

    def weight(self, process, t):
        return self.claimed * snr_loss_rate(process, t) ** self.power

    @classmethod
    def variants(cls):
        return {"": cls(), "mean": cls(0.5, True)}


class Boasting(Scaled):
    claimed = 1.1


class Bare(Loss):
    """A loss without a weight, whose minimum is not at the conditional mean."""

    def __call__(self, denoiser, noised, key):
        return sum_dims(jnp.abs(noised.eps - denoiser(noised.x, noised.t).eps))


class Broken(Bare):
    def __call__(self, denoiser, noised, key):
        return jnp.log(-super().__call__(denoiser, noised, key))


class Peeking(Bare):
    def __call__(self, denoiser, noised, key):
        return super().__call__(denoiser, noised, key) + jnp.mean(noised.x)


@pytest.mark.slow
def test_one_line_in_a_table_is_all_that_a_new_part_needs(monkeypatch):
    """A loss of two forms, a loss without a weight, a target and a process: found, compared, and in the table."""
    monkeypatch.setitem(LOSSES, "scaled", Scaled)
    monkeypatch.setitem(LOSSES, "bare", Bare)
    monkeypatch.setitem(TARGETS, "tilted", lambda process, t: (0.5 * process.sigma(t), 2 * process.alpha(t)))
    monkeypatch.setitem(PROCESSES, "short", lambda: VP(t_max=0.8))
    assert ("short", "tilted", "scaled-mean") in combinations()
    cells = [check("short", "tilted", name) for name in ("scaled", "scaled-mean", "bare", "ssm", "x0")]
    assert all(cell.passed and cell.refused is None for cell in cells), cells
    assert [cell.note is None for cell in cells] == [True, True, False, True, True]
    text = table(cells)
    assert "| scaled | scaled-mean | bare |" in text and "a. this loss has no `weight`" in text
    assert "`scaled-mean` is the loss with power=0.5, mean=True." in text
    monkeypatch.setitem(LOSSES, "scaled", Boasting)
    monkeypatch.setitem(LOSSES, "bare", Broken)
    assert not check("short", "v", "scaled").passed and not check("short", "v", "bare").passed


@pytest.mark.slow
def test_checks_of_one_part_say_what_does_not_hold():
    """Called as by a user who adds a part."""
    for loss in (Scaled(), Scaled(1.0, True), Bare(), lambda d, n, key: Bare()(d, n, key)):
        check_loss(loss)
    check_loss(Scaled(), PROCESSES["ddpm"])
    for loss, word in (
        (Boasting(), "gradient is off"),
        (Broken(), "not finite"),
        (Peeking(), "other examples"),
        (lambda denoiser, noised, key: jnp.mean(noised.x), "one number for each"),
        (lambda denoiser, noised, key: sum_dims(noised.x).astype(jnp.float16), "float16"),
        (lambda denoiser, noised, key: sum_dims(noised.x), "it is negative"),
    ):
        with pytest.raises(AssertionError, match=word):
            check_loss(loss)
    with pytest.raises(AssertionError, match="det"):
        check_target(lambda process, t: (process.alpha(t), process.sigma(t)))


@dataclasses.dataclass(frozen=True)
class Slow(Flow):
    """A correct process of one's own. Each of the classes below has one error."""

    def alpha(self, t):
        return 1 - t**2

    def sigma(self, t):
        return t

    def logsnr(self, t):
        return 2 * (jnp.log1p(-(t**2)) - jnp.log(t))

    def time(self, logsnr):
        ratio = jnp.exp(jnp.clip(-0.5 * logsnr, -80.0, 80.0))  # t / (1 - t^2)
        t = 2 * ratio / (1 + jnp.sqrt(1 + 4 * ratio**2))
        return jnp.clip(t, self.t_min, self.t_max)


class OtherAlpha(Slow):
    def alpha(self, t):
        return 1 - t


class OtherTime(Slow):
    def time(self, logsnr):
        return Flow.time(self, logsnr)


class NotClipped(Slow):
    def time(self, logsnr):
        ratio = jnp.exp(jnp.clip(-0.5 * logsnr, -80.0, 80.0))
        return 2 * ratio / (1 + jnp.sqrt(1 + 4 * ratio**2))


class OneTime(Slow):
    def sigma(self, t):
        return jnp.mean(t)


class Rising(Slow):
    def logsnr(self, t):
        return -super().logsnr(t)

    def alpha(self, t):
        return Slow.sigma(self, t)

    def sigma(self, t):
        return Slow.alpha(self, t)


@pytest.mark.slow
def test_a_process_of_ones_own_is_checked():
    for make in (*PROCESSES.values(), Slow):
        check_process(make)
    for make, word in (
        (OtherAlpha, "logsnr is not"),
        (OtherTime, "not the inverse"),
        (NotClipped, "not clipped"),
        (OneTime, "shape"),
        (lambda: Rising(t_max=0.99), "does not fall"),
    ):
        with pytest.raises(AssertionError, match=word):
            check_process(make)


def test_the_table_names_its_reasons():
    cells = [check("ddpm", "velocity", "dsm"), check("ncsn", "velocity", "eps"), check("flow", "eps", "dsm")]
    text = table(cells)
    assert "| ddpm | velocity |" in text and "derivative in time" in text and "b. at its noisiest" in text
    assert text.count(" a |") == 2 and text.count(" b |") == 1
    assert "`ssm-plain` is the loss with variance_reduced=False." in text
    assert "A blank was not tried" in text
    assert "A blank" not in table([Cell("vp", "v", loss) for loss in columns()])


@pytest.fixture
def one_cell(monkeypatch):
    """A matrix of one cell that is not computed."""
    monkeypatch.setattr(conformance, "combinations", lambda small: [("vp", "v", "dsm")])
    monkeypatch.setattr(conformance, "check", lambda *names: Cell(*names))


def refused_at_once(monkeypatch, capsys, out: str, *parts: str) -> None:
    def late(*_):
        raise AssertionError("it was begun")

    monkeypatch.setattr(conformance, "check", late)
    assert main([f"--out={out}"]) == 2
    said, line = capsys.readouterr()
    assert said == "" and line.startswith("scoregen: ") and line.count("\n") == 1
    assert all(part in line for part in parts)


def test_a_place_that_is_no_file_is_refused_before_the_work(monkeypatch, capsys, tmp_path):
    refused_at_once(monkeypatch, capsys, "", "--out= has no value")
    for out in (str(tmp_path), f"{tmp_path}/new/"):
        refused_at_once(monkeypatch, capsys, out, f"--out={out}: a file is needed")
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "none" / "matrix.md", tmp_path / "file" / "matrix.md"):
        refused_at_once(monkeypatch, capsys, str(out), f"cannot write {out.parent}", "use another folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("one_cell")
def test_the_matrix_is_written_whole_or_not_at_all(monkeypatch, capsys, tmp_path):
    out = tmp_path / "matrix.md"
    assert main([f"--out={out}"]) == 0
    whole = out.read_text()
    assert whole in capsys.readouterr().out and "| vp | v |" in whole
    out.write_text("before")

    def interrupted(*_):
        assert [path.name for path in tmp_path.iterdir()] == ["matrix.md"]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conformance, "check", interrupted)
        assert main([f"--out={out}"]) == 130
        assert main([f"--out={tmp_path / 'new.md'}"]) == 130

    def full(path, text, **_):
        with path.open("w") as file:
            file.write(text[:10])
        if text:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert main([f"--out={out}"]) == 2
    line = capsys.readouterr().err
    assert f"cannot write {out}: No space left on device" in line and "use another folder" in line
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.md"]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "there.md").write_text("before")
    (tmp_path / "link.md").symlink_to(tmp_path / "there.md")
    assert command._writable(str(tmp_path / "link.md")) == tmp_path / "there.md"


def test_help_names_the_flags_and_exit_codes_and_nothing_of_the_inside(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for word in ("--small", "--out=FILE", "Exit codes:", "scoregen conformance"):
        assert word in out
    assert not any(word in out for word in ("OUTPUTS", "WEIGHTS", "theta)"))


@pytest.mark.quick(1)
@pytest.mark.parametrize("program", ["app.conformance", "contrib.design.command"])
def test_what_is_heavy_is_loaded_where_an_interrupt_is_heard(program):
    """For Ctrl-C in the first second: JAX, SciPy and matplotlib are loaded where an interrupt is handled."""
    code = f"import sys; import scoregen.{program}; "
    code += "print([name for name in ('jax', 'scipy', 'matplotlib', 'flax') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert found.stdout.strip() == "[]"


def test_an_interrupt_is_heard_also_where_an_exception_would_be_lost():
    code = "import os, signal, scoregen.app.command as c; {}\ntry:\n os.kill(os.getpid(), signal.SIGINT)\n"
    code += "except KeyboardInterrupt:\n pass\nprint('lost')"
    for before, want in (("c.leave_at_once()", (130, "", "")), ("pass", (0, "lost\n", ""))):
        argv = [sys.executable, "-c", code.format(before)]
        found = subprocess.run(argv, capture_output=True, text=True, check=False, env=os.environ)
        assert (found.returncode, found.stdout, found.stderr) == want
