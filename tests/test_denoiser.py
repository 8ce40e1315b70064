"""Every process x target: the rows invert; and the bridge between processes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import TWO_MODES

from scoregen.denoiser import TARGETS, as_process, denoiser, eps_row
from scoregen.process import PROCESSES, ddpm, ncsn, perturb, rows

CHAINS = {name: make() for name, make in PROCESSES.items()}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PROCESSES)
def test_rows_invert(name, target):
    """A network whose output is a x0 + b eps is turned back into that x0, that eps and -eps / sigma."""
    with jax.enable_x64(True):
        process, row = PROCESSES[name](), TARGETS[target]
        t = process.grid()
        x0 = jax.random.normal(jax.random.key(0), (len(t), 3), jnp.float64)
        noised = perturb(process, jax.random.key(1), x0, t)
        a, b = row(process, t)
        det = process.alpha(t) * b - a * process.sigma(t)
        assert (abs(det) > 1e-6).all()
        predict = denoiser(process, row, lambda x, t: rows(a, x) * x0 + rows(b, x) * noised.eps)
        x0_hat, eps_hat, score = predict(noised.x, t)
        np.testing.assert_allclose(x0_hat, x0, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(eps_hat, noised.eps, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(score, -noised.eps / rows(process.sigma(t), x0), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", PROCESSES)
def test_rows_are_the_papers(name):
    """What each network is asked for, in the words of its paper."""
    process = CHAINS[name]
    t = jnp.array([0, 3, 9])
    x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 2))
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    want = {"eps": eps, "x0": x0, "score": -eps / sigma, "v": alpha * eps - sigma * x0}
    for target, row in TARGETS.items():
        a, b = row(process, t)
        np.testing.assert_allclose(rows(a, x0) * x0 + rows(b, x0) * eps, want[target], rtol=1e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_tweedie(name):
    """THEORY 8: the exact denoiser, its noise and its score are one thing: x0 = (x + sigma^2 score) / alpha."""
    process = CHAINS[name]
    t = process.grid(5)
    x = jax.random.normal(jax.random.key(0), (5, 2))
    exact = TWO_MODES.predict(process)(x, t)
    again = denoiser(process, eps_row, lambda x, t: exact.eps)(x, t)
    np.testing.assert_allclose(again.score, exact.score, rtol=1e-5)
    np.testing.assert_allclose(again.x0 * rows(process.alpha(t), x), exact.x0 * rows(process.alpha(t), x), atol=1e-4)


@pytest.mark.parametrize(
    ("source", "target"), [("ddpm", "ncsn"), ("ncsn", "ddpm"), ("cosine", "ddpm"), ("ncsn", "ncsn")]
)
def test_bridge_of_the_exact_denoiser_is_exact(source, target):
    """THEORY 14: the exact denoiser of one process, carried over, is the exact denoiser of the other."""
    made = {"ddpm": ddpm(), "cosine": PROCESSES["cosine"](), "ncsn": ncsn(0.02, 30.0, 40)}
    source, target = made[source], made[target]
    target = target.within(source)
    predict = as_process(TWO_MODES.predict(source), source, target)
    t = target.grid(9)
    x0 = TWO_MODES.sample(jax.random.key(0), 9)
    x = perturb(target, jax.random.key(1), x0, t).x
    ours, exact = predict(x, t), TWO_MODES.predict(target)(x, t)
    sigma = rows(target.sigma(t), x)
    np.testing.assert_allclose(ours.x0, exact.x0, atol=2e-3)
    np.testing.assert_allclose(ours.eps, exact.eps, atol=2e-3)
    np.testing.assert_allclose(sigma * ours.score, sigma * exact.score, atol=2e-3)


def test_bridge_refuses_what_the_source_never_saw():
    with pytest.raises(ValueError, match=r"outside the noise range.*target\.within\(source\)"):
        as_process(TWO_MODES.predict(ncsn()), ncsn(), ddpm())
