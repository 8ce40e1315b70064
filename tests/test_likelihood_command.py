"""Likelihoods on the command line: the two estimates and their differences, written down with their errors."""

import contextlib
import io
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.app import main as command
from scoregen.data import points
from scoregen.likelihood import LogLikelihood, ProbabilityFlow

TRAIN = (
    *("train", "--config=ddpm_toy", "--config.data.mixture.size=200", "--config.net.mlp.width=8"),
    *("--config.net.mlp.depth=1", "--config.net.mlp.embedding=8", "--steps=3", "--batch=8"),
    "--config.eval.at_end=False",
)
LIKELIHOOD = ("likelihood", "--n=10", "--config.eval.likelihood.bound.strata=8")


def main(*argv):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command.main([str(arg) for arg in argv])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("likelihood")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(points, "TEST_SIZE", 100)
        assert main(*TRAIN, f"--workdir={workdir}")[0] == 0
        yield workdir


def figures(workdir):
    return {row["name"]: row for row in json.loads((workdir / "likelihood.json").read_text())["likelihoods"]}


@pytest.mark.slow
def test_the_command_line_writes_it_down(trained):
    code, out, err = main(*LIKELIHOOD, trained, "--config.eval.likelihood.batch=4")
    assert (code, err) == (0, "") and "10 held-out examples" in out
    batched = figures(trained)
    assert list(batched) == ["bound", "ode", "bound - ode", "exact", "bound - exact", "ode - exact"]
    assert {row["unit"] for row in batched.values()} == {"nats"}
    assert f"{batched['ode']['value']:.4f} +- {batched['ode']['error']:.4f} nats" in out
    assert main(*LIKELIHOOD, trained)[0] == 0
    for name, row in figures(trained).items():  # whatever the batch
        np.testing.assert_allclose(row["value"], batched[name]["value"], rtol=1e-4)
        np.testing.assert_allclose(row["error"], batched[name]["error"], rtol=0.02)
    for kind in ("bound", "ode"):
        apart = batched[kind]["value"] - batched["exact"]["value"]
        np.testing.assert_allclose(batched[f"{kind} - exact"]["value"], apart, rtol=1e-6)
    # The data's own density, of the same ten points.
    data = points.mixture(size=200)
    nll = -np.asarray(data.log_density(data.test[:10]))
    np.testing.assert_allclose(batched["exact"]["value"], nll.mean(), rtol=1e-5)
    np.testing.assert_allclose(batched["exact"]["error"], nll.std(ddof=1) / math.sqrt(10), rtol=1e-5)
    assert batched["ode"]["own"] == 0 < batched["bound"]["own"]

    assert main("likelihood", trained, "--n=10", "--config.eval.likelihood.name=ode")[0] == 0
    assert list(figures(trained)) == ["ode", "exact", "ode - exact"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--n=1"], ["at least 2"]),
        (["--config.eval.likelihood.ode.probes=1"], ["config.eval.likelihood.ode.probes=1: at least 2"]),
        (["--config.eval.likelihood.name=vlb"], ["config.eval.likelihood.name", "both, bound, ode"]),
        (["--config.sampler.process.name=vp", "--config.eval.likelihood.bound.strata=0"], ["strata=0", "continuous"]),
        (
            ["--config.sampler.process.name=ncsn", "--config.sampler.process.ncsn.start=uniform"],
            ["uniform law", "start=normal"],
        ),
    ],
)
def test_the_command_line_says_no(trained, flags, parts):
    code, out, err = main("likelihood", trained, *flags)
    assert code == 2 and err.count("\n") == 1 and "Traceback" not in out + err
    assert all(part in err for part in parts), err


@pytest.mark.slow
def test_a_density_that_is_not_finite_is_said(trained, monkeypatch):
    nothing = lambda self, denoiser, key, x0: LogLikelihood(*(jnp.full(len(x0), jnp.nan),) * 3)  # noqa: E731
    monkeypatch.setattr(ProbabilityFlow, "__call__", nothing)
    code, _, err = main(*LIKELIHOOD, trained)
    assert code == 2 and "10 of 10 likelihoods by 'ode' are not finite" in err


@pytest.mark.slow
def test_of_a_network_on_digits_the_bound_is_above_the_ode(tmp_path):
    """Noise is spread over the bytes, so that both estimate the same density, in bits per dimension."""
    flags = ("--config=ddpm_digits", "--config.scaling.name=unit", "--steps=300", "--batch=64")
    flags += ("--config.eval.at_end=False", f"--workdir={tmp_path}")
    likelihood = ("--n=16", "--config.eval.likelihood.ode.probes=4", "--config.eval.likelihood.ode.rtol=1e-3")
    likelihood += ("--config.eval.likelihood.ode.atol=1e-3",)
    assert main("train", *flags)[0] == 0
    assert main("likelihood", tmp_path, *likelihood)[0] == 0
    found = figures(tmp_path)
    assert found["bound"]["unit"] == "bits/dim"
    assert found["bound - ode"]["value"] > 0
    assert 3 < found["ode"]["value"] < 8
