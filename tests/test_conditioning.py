"""Conditioning on a context vector, against a linear-Gaussian p(x | y), whose score is known."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import multivariate_normal

import scoregen as sg
from scoregen.app.build import build
from scoregen.app.config import load
from scoregen.app.main import main
from scoregen.data import array
from scoregen.errors import UsageError

A = np.array([[1.5, -0.5], [0.5, 1.0], [0.0, -1.0]])  # x = A y + b + noise, x in R^3, y in R^2
B = np.array([4.0, -20.0, 0.3])
ROOT = np.array([[0.5, 0.0, 0.0], [0.3, 0.4, 0.0], [0.0, 0.2, 0.6]])
NOISE = ROOT @ ROOT.T
Y_MEAN, Y_STD = np.array([10.0, -3.0]), np.array([2.0, 0.5])


def pairs(n, seed=0):
    rng = np.random.default_rng(seed)
    y = Y_MEAN + Y_STD * rng.standard_normal((n, 2))
    return y @ A.T + B + rng.standard_normal((n, 3)) @ ROOT.T, y


def moments(y=None):
    """Mean and covariance of x given y, or of all x."""
    if y is None:
        return A @ Y_MEAN + B, NOISE + A @ np.diag(Y_STD**2) @ A.T
    return A @ np.asarray(y) + B, NOISE


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of `fit` on 20,000 pairs."""
    x, y = pairs(20_000)
    data = array(x, context=y)
    net = sg.nets.MLP(width=96, depth=2, context_dim=2)
    model = sg.Model(sg.EDM(data_std=1.0), net, target="edm", condition="sigma", unit_input=True)
    objective = sg.Objective(sg.X0MSE(), sg.EDMWeight(), label_dropout=0.1)
    rate = optax.cosine_decay_schedule(3e-3, 4000)
    folder = tmp_path_factory.mktemp("context")
    sg.fit(model, data, objective, optax.adam(rate), 4000, batch=512, seed=1, workdir=folder, progress=False)
    return sg.load(folder)


def score_of(run, y, x, sigma):
    """The exact score of x = z-units + sigma noise, in the network's units."""
    units = run.sampling.units
    mean, cov = moments(y)
    mean, cov = (mean - units.mean) / units.std, cov / np.outer(units.std, units.std)
    return -np.linalg.solve(cov + sigma**2 * np.eye(3), (x - mean).T).T


@pytest.mark.slow
@pytest.mark.parametrize("y", [(10.0, -3.0), (13.0, -2.5), (8.0, -3.6), None])
@pytest.mark.parametrize("sigma", [0.2, 0.7, 3.0])
def test_the_score_given_a_context_is_that_of_the_closed_form(trained, y, sigma):
    units = trained.sampling.units
    mean, cov = moments(y)
    rng = np.random.default_rng(4)
    x = (rng.multivariate_normal(mean, cov, 2000) - units.mean) / units.std + sigma * rng.standard_normal((2000, 3))
    cond = None
    if y is not None:
        context = trained.sampling.context_units.encode(np.array([y])).repeat(2000, 0)
        cond = sg.Cond(context=jnp.asarray(context))
    found = trained.model.denoiser(trained.params, cond)(jnp.asarray(x, jnp.float32), jnp.full(2000, sigma)).score
    exact = score_of(trained, y, x, sigma)
    error = np.square(found - exact).sum(1).mean() / np.square(exact).sum(1).mean()
    assert error < 0.01, error


@pytest.mark.slow
def test_samples_have_the_moments_of_the_closed_form(trained):
    sampler = sg.Sampler(sg.EDMHeun(), n=20)
    y = (13.0, -2.5)
    x = trained.sample(4000, context=y, sampler=sampler)
    mean, cov = moments(y)
    error = np.sqrt(np.diag(cov) / 4000)
    assert np.all(np.abs(x.mean(0) - mean) < 5 * error + 0.05 * np.sqrt(np.diag(cov)))
    np.testing.assert_allclose(np.cov(x.T), cov, atol=0.06)
    # One context for each sample: the residual has the covariance of the noise.
    _, ys = pairs(4000, seed=9)
    apart = trained.sample(4000, context=ys, sampler=sampler) - (ys @ A.T + B)
    np.testing.assert_allclose(np.cov(apart.T), NOISE, atol=0.06)
    # Without a context: all x.
    every = trained.sample(4000, sampler=sampler)
    np.testing.assert_allclose(np.cov(every.T), moments()[1], rtol=0.15, atol=0.25)


@pytest.mark.slow
def test_the_likelihood_given_a_context_is_that_of_the_closed_form(trained):
    x, y = pairs(64, seed=5)
    exact = np.array([multivariate_normal(*moments(of)).logpdf(row) for row, of in zip(x, y, strict=True)])
    nats = np.asarray(trained.log_likelihood(x, context=y).nats)
    assert abs((nats - exact).mean()) < 0.06 and np.abs(nats - exact).max() < 0.6
    shuffled = np.asarray(trained.log_likelihood(x, context=y[::-1]).nats)
    assert (nats - shuffled).mean() > 3


@pytest.mark.slow
def test_wrong_contexts_are_refused(trained):
    for context, line in (([1.0], "2 numbers are needed"), (["a", "b"], "2 numbers"), ([1.0, np.nan], "finite")):
        with pytest.raises(ValueError, match=line):
            trained.sample(3, context=context)


@pytest.mark.slow
def test_guidance_and_other_units_in_python(trained):
    assert trained.sample(2, context=[10.0, -3.0], guidance=2.0).shape == (2, 3)
    x, y = pairs(3000, seed=7)
    own = array(x, context=y, seed=3, mean=(0.0,), std=(100.0,))
    assert trained.evaluate(own, samples=100)[0].value < 0.5  # in the run's units, with contexts of these data


# Without training


@pytest.mark.slow
def test_a_run_keeps_the_units_of_its_training(tmp_path):
    """A file that has changed since, and classes with names: samples stay in the units of the training."""
    rng = np.random.default_rng(0)
    rows = [f"{a:.3f},{b:.3f},{'xy'[i % 2]}" for i, (a, b) in enumerate(rng.normal(5, 2, (80, 2)))]
    path = tmp_path / "t.csv"
    path.write_text("a,b,k\n" + "\n".join(rows) + "\n")
    argv = ["train", "points", f"--data={path}", "--config.data.table.label=k", "--config.labels=true", "--steps=2"]
    argv += ["--config.net.name=mlp", "--config.net.mlp.width=8", "--config.sampler.n=3", "--config.eval.samples=20"]
    argv += ["--batch=8", "--config.sampler.images=5", "--config.data.context=b", f"--workdir={tmp_path / 'run'}"]
    assert main(argv) == 0
    before = sg.load(tmp_path / "run").sample(4, context=[5.0], label=0)
    path.write_text("a,b,k\n" + "\n".join(f"1000{row}" for row in rows) + "\n")
    run = sg.load(tmp_path / "run")
    np.testing.assert_allclose(run.sample(4, context=[5.0], label=0), before, rtol=1e-5)
    assert run.dataset.units == run.sampling.units and run.config.net.name == "mlp"
    path.unlink()
    np.testing.assert_allclose(sg.load(tmp_path / "run").sample(4, context=[5.0], label=0), before, rtol=1e-5)
    with pytest.raises(ValueError, match="give label and context"):
        run.log_likelihood(np.ones((2, 1)), context=[5.0])


@pytest.mark.slow
def test_a_network_that_was_never_without_its_context_needs_one(tmp_path):
    x, y = pairs(40)
    model = sg.Model(sg.VP(), sg.nets.MLP(width=8, context_dim=2))
    data = array(x, context=y)
    sg.fit(model, data, sg.Objective(sg.EpsilonMSE()), optax.adam(1e-3), 1, batch=8, workdir=tmp_path, progress=False)
    run = sg.load(tmp_path)
    for work in (lambda: run.sample(2), lambda: run.log_likelihood(x[:2])):
        with pytest.raises(ValueError, match=r"never trained without a context \(label_dropout=0\): give context"):
            work()
    assert run.sample(2, context=[10.0, -3.0], sampler=sg.Sampler(sg.Ancestral(), n=2)).shape == (2, 3)


@pytest.mark.slow
def test_auto_is_stored_as_the_network_that_it_chose(tmp_path):
    x, _ = pairs(60)
    np.save(tmp_path / "x.npy", x)
    argv = ["train", "points", f"--data={tmp_path / 'x.npy'}", "--steps=1", "--batch=8", "--config.sampler.n=2"]
    assert main([*argv, "--config.eval.samples=10", f"--workdir={tmp_path / 'run'}"]) == 0
    config = sg.load(tmp_path / "run").config
    assert config.net.name == "mlp" and config.net.mlp.width == 128
    assert main([*argv[:3], "--steps=2", *argv[4:], "--config.eval.samples=10", f"--workdir={tmp_path / 'run'}"]) == 0


def tiny(**changes):
    config = load("points")
    config.net.name = "mlp"
    config.net.mlp.width = 8
    config.eval.samples = 20
    config.data.name = "array"
    with config.unlocked():
        for key, value in changes.items():
            *path, last = key.split("__")
            section = config
            for name in path:
                section = section[name]
            section[last] = value
    return config


@pytest.fixture
def files(tmp_path):
    x, y = pairs(60)
    np.savez(tmp_path / "xy.npz", x=x, y=y)
    return {"data__dir": str(tmp_path / "xy.npz"), "data__array__key": "x"}


def test_the_context_reaches_the_network_in_its_units(files):
    parts = build(tiny(data__context="y", sampler__context=(13.0, -2.5), **files))
    assert parts.model.context_dim == 2
    units = parts.dataset.context_units
    of = parts.sampling.cond_of(np.arange(3)).context
    np.testing.assert_allclose(of, np.tile((np.array([13.0, -2.5]) - units.mean) / units.std, (3, 1)), rtol=1e-5)
    np.testing.assert_allclose(parts.cond_held_out(np.arange(2)).context, of[:2])
    own = build(tiny(data__context="y", **files))
    assert np.array_equal(own.sampling.cond_of(np.arange(54)).context, own.dataset.train_context)
    assert np.array_equal(own.cond_held_out(np.arange(6)).context, own.dataset.test_context)
    assert build(tiny(**files)).sampling.cond is None


@pytest.mark.slow
def test_guidance_extrapolates_from_no_context(files):
    parts = build(tiny(data__context="y", sampler__guidance=3.0, **files))
    params = parts.model.init(jax.random.key(0), (1, 3))
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    x, t, cond = jnp.ones((5, 3)), jnp.full(5, 0.7), parts.sampling.cond_of(np.arange(5))
    with_context, without = (parts.model.denoiser(params, c)(x, t).eps for c in (cond, None))
    assert float(jnp.abs(with_context - without).max()) > 1e-3
    found = parts.sampling.denoiser(params, cond)(x, t).eps
    np.testing.assert_allclose(found, without + 3 * (with_context - without), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data__context": "y", "sampler__context": (1.0,)}, "has 2 numbers"),
        ({"data__context": "y", "sampler__context": (1.0, math.inf)}, "finite"),
        ({"data__context": "z"}, "context=z: "),
        (
            {"data__context": "y", "sampler__guidance": 2.0, "label_dropout": 0.0},
            "trained also without labels and contexts",
        ),
        ({"data__context": "y", "net__name": "ncsnpp"}, "no input for a context"),
        ({"sampler__context": (1.0, 2.0)}, "no numbers"),
        ({"sampler__guidance": 2.0}, "no classes and no context"),
    ],
)
def test_a_context_that_does_not_fit_is_refused(files, changes, line):
    with pytest.raises(UsageError) as error:
        build(tiny(**files, **changes))
    assert any(line in reason for reason in error.value.args), error.value.args


def test_fit_wants_a_network_that_takes_the_context():
    x, y = pairs(40)
    data, model = array(x, context=y), sg.Model(sg.VP(), sg.nets.MLP(width=8))
    with pytest.raises(ValueError, match=r"context_dim=0, and the data have a context of 2 numbers: say context_dim=2"):
        sg.fit(model, data, sg.Objective(sg.EpsilonMSE()), optax.adam(1e-3), 1, progress=False)
    other = sg.Model(sg.VP(), sg.nets.MLP(width=8, context_dim=2))
    with pytest.raises(ValueError, match="no context"):
        sg.fit(other, array(x), sg.Objective(sg.EpsilonMSE()), optax.adam(1e-3), 1, progress=False)


@pytest.mark.slow
def test_contexts_change_the_training_with_their_examples():
    """One step of SGD at a fixed batch: other contexts give other gradients."""
    x, y = pairs(16)
    data = array(x, context=y, held_out=0.0)
    model = sg.Model(sg.VP(), sg.nets.MLP(width=8, context_dim=2))
    objective = sg.Objective(sg.EpsilonMSE())
    first = sg.fit(model, data, objective, optax.sgd(1.0), 1, batch=16, progress=False, ema=None)
    wrong = dataclasses.replace(data, train_context=data.train_context[::-1])
    second = sg.fit(model, wrong, objective, optax.sgd(1.0), 1, batch=16, progress=False, ema=None)
    same = sg.fit(model, data, objective, optax.sgd(1.0), 1, batch=16, progress=False, ema=None)
    apart = [
        float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (first.params, second.params)), strict=True)
    ]
    assert max(apart) > 1e-5
    assert all(jnp.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first.params, same.params)), strict=True))
