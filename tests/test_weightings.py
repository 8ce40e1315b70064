"""Each weighting has its paper's formula, and has the same meaning for every target and every loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.denoiser import TARGETS, Denoiser, Prediction
from scoregen.losses import DSM, WEIGHTINGS, X0MSE, EpsilonMSE, FlowMatching, Weighted
from scoregen.losses.weightings import P2, Constant, EDMWeight, Likelihood, MinSNR, Sigma2, Sigmoid
from scoregen.process import EDM, PROCESSES, VE, VP, Flow, Noised, ddpm, drift_diffusion, ncsn, posterior
from scoregen.random import broadcast
from scoregen.times import LogNormal, Own, own_density

NAMED = {name: make for name, make in WEIGHTINGS.items() if name != "own"}


pytestmark = pytest.mark.usefixtures("exact")


def times(process, n=20):
    """All levels of a chain but the first, or times with alpha > 0."""
    if process.discrete:
        return jnp.arange(1, process.ends[1] + 1)
    t = jnp.geomspace(*process.ends, n) if isinstance(process, EDM) else jnp.linspace(*process.ends, n)
    return t[np.asarray(process.alpha(t)) > 0]


def counts(process, t, target):
    """The squared error of the output for `target`, if x0 has the error 1 and so the noise the error -alpha / sigma."""
    alpha, sigma = np.asarray(process.alpha(t)), np.asarray(process.sigma(t))
    a, b = map(np.asarray, TARGETS[target](process, t))
    return (a - b * alpha / sigma) ** 2


def test_errors_in_other_terms():
    """By hand: eps is off by alpha / sigma, the score by alpha / sigma^2, and v, under VP, by 1 / sigma."""
    process = VP()
    t = times(process)
    alpha, sigma = np.asarray(process.alpha(t)), np.asarray(process.sigma(t))
    for target, want in {"x0": 1, "eps": alpha / sigma, "score": alpha / sigma**2, "v": 1 / sigma}.items():
        np.testing.assert_allclose(counts(process, t, target), want**2 + 0 * sigma, rtol=1e-9)


@pytest.mark.quick(1)
@pytest.mark.parametrize("process", [VP(), VE(), EDM(), Flow()])
def test_the_published_forms(process):
    """Each formula weighs the error that its paper uses, with sigma / alpha for sigma if the paper's alpha is 1."""
    t = times(process)
    snr = np.asarray(process.alpha(t) / process.sigma(t)) ** 2
    eps, score = counts(process, t, "eps"), counts(process, t, "score")
    half_g2 = 0.5 * np.asarray(drift_diffusion(process, t)[1]) ** 2
    published = {
        Constant(): 1.0 + 0 * snr,
        Sigma2(): np.asarray(process.sigma(t)) ** 2 * score,  # Song & Ermon 2019, eq. 6
        Likelihood(): half_g2
        * score
        / own_density(process, t),  # Song, Durkan et al. 2021, eq. 7, as a mean over times
        MinSNR(3.0): np.minimum(snr, 3.0),  # Hang et al. 2023: of x0, and min(SNR, gamma) / SNR of eps
        P2(0.7, 0.5): eps / (0.7 + snr) ** 0.5,  # Choi et al. 2022, of the simple loss
        EDMWeight(): (1 / snr + process.data_std**2) / (process.data_std**2 / snr),  # Karras et al. 2022, table 1
    }
    for weighting, want in published.items():
        np.testing.assert_allclose(weighting(process, t), want, rtol=1e-7, err_msg=str(weighting))
    np.testing.assert_allclose(MinSNR(3.0)(process, t), np.minimum(1, 3 / snr) * eps, rtol=1e-7)


@pytest.mark.quick(1)
@pytest.mark.parametrize("process", [VP(), VE(), EDM(), Flow()])
def test_the_sigmoid_weighs_the_bound(process):
    """Kingma & Gao 2023: -lam' sigmoid(b - lam) weighs the error of eps. Here a difference gives lam'."""
    t = jnp.sort(times(process))[1:-1]
    h = 1e-6 * t
    lam, slope = np.asarray(process.logsnr(t)), np.asarray((process.logsnr(t + h) - process.logsnr(t - h)) / (2 * h))
    want = -slope / (1 + np.exp(lam - 2.0)) * counts(process, t, "eps") / np.asarray(own_density(process, t))
    np.testing.assert_allclose(Sigmoid(2.0)(process, t), want, rtol=1e-5)
    # where lam is far below b, the weight is twice the weight of the bound
    np.testing.assert_allclose(Sigmoid(200.0)(process, t), 2 * np.asarray(Likelihood()(process, t)), rtol=1e-9)


@pytest.mark.slow
def test_the_bounds_weights_do_not_depend_on_the_law_of_the_times():
    """VE and EDM between the same noise levels are one process at two paces, with equal means of w f over own times."""
    ends = {"sigma_min": 0.01, "sigma_max": 50.0}
    wide, u = LogNormal(std=3.0), jnp.asarray((np.arange(200_000) + 0.5) / 200_000)
    for weighting in (Likelihood(), Sigmoid()):
        means = []
        # EDM's own law has little mass in its tails, so the times follow a wider law, and the ratio corrects the mean.
        for process, law in ((VE(**ends, t_min=1e-9), Own()), (EDM(**ends), wide)):
            t = law.quantile(process, u)
            ratio = own_density(process, t) / law.density(process, t)
            means.append(float(jnp.mean(ratio * weighting(process, t) * jnp.exp(-process.logsnr(t)))))
        np.testing.assert_allclose(means[0], means[1], rtol=1e-5)


@pytest.mark.quick(1)
@pytest.mark.parametrize("process", [ddpm, lambda: ncsn(0.01, 20.0, 30)])
def test_of_a_chain_the_likelihood_is_the_divergence_of_two_steps(process):
    """L_{t-1} with the posterior's variance is (difference of the means)^2 / (2 variance); N levels give a factor N."""
    process = process()
    t = times(process)
    x, zero = jnp.ones((len(t), 1)), jnp.zeros((len(t), 1))
    (one, std), (other, _) = (posterior(process, x, x0, t, t - 1) for x0 in (zero, zero + 1))
    want = (process.ends[1] + 1) * np.asarray((one - other)[:, 0] / std) ** 2 / 2
    np.testing.assert_allclose(Likelihood()(process, t), want, rtol=1e-9)


@pytest.mark.quick(6)
@pytest.mark.parametrize("name", PROCESSES)
def test_with_the_weighting_edm_the_output_of_the_target_edm_counts_one(name):
    process = PROCESSES[name]()
    t = times(process)
    np.testing.assert_allclose(EDMWeight()(process, t), counts(process, t, "edm"), rtol=1e-7)


@pytest.mark.quick(1)
@pytest.mark.parametrize("weighting", NAMED)
@pytest.mark.parametrize("name", ["ddpm", "ncsn", "vp", "edm", "flow"])
def test_a_weighting_is_the_same_of_every_loss(name, weighting):
    """The loss of each example is w ||x0 - x0_theta||^2, and w replaces the loss's own weight."""
    process, by = PROCESSES[name](), NAMED[weighting]()
    t, rng = times(process, 12), np.random.default_rng(0)
    x0, eps, wrong = jnp.asarray(rng.standard_normal((3, len(t), 2)))
    alpha, sigma = broadcast(process.alpha(t), x0), broadcast(process.sigma(t), x0)
    off = eps - alpha / sigma * wrong
    found, noised = Prediction(x0 + wrong, off, -off / sigma), Noised(x0, eps, alpha * x0 + sigma * eps, t)
    denoiser = Denoiser(process, lambda x, t: found)
    want = np.asarray(by(process, t)) * np.sum(np.asarray(wrong) ** 2, 1)
    for loss in (EpsilonMSE("sum"), X0MSE(), DSM(), *([] if process.discrete else [FlowMatching()])):
        weighted = Weighted(loss, by)
        value = weighted(denoiser, noised, jax.random.key(0))
        np.testing.assert_allclose(value, want, rtol=1e-8)
        np.testing.assert_array_equal(weighted.weight(process, t), by(process, t))
        assert weighted.positive
    mean = Weighted(EpsilonMSE("mean"), by)(denoiser, noised, jax.random.key(0))
    np.testing.assert_allclose(mean, want / 2, rtol=1e-8)


@pytest.mark.quick(11)
@pytest.mark.parametrize("weighting", NAMED)
@pytest.mark.parametrize("name", PROCESSES)
def test_weights_are_finite_and_not_negative_up_to_both_ends(name, weighting):
    """Also where alpha = 0, and in float32, as in training."""
    with jax.enable_x64(False):
        process = PROCESSES[name]()
        every = jnp.arange(process.ends[1] + 1) if process.discrete else jnp.linspace(*process.ends, 1000)
        weight = np.asarray(NAMED[weighting]()(process, every))
        assert np.isfinite(weight).all() and (weight >= 0).all() and weight.max() > 0


@pytest.mark.parametrize("make", [lambda: MinSNR(0.0), lambda: P2(k=0.0), lambda: P2(gamma=-1.0)])
def test_nonsense_is_refused(make):
    with pytest.raises(ValueError, match="needed"):
        make()


def test_a_plain_function_has_no_weight_to_be_replaced():
    process, x = VP(), jnp.ones((2, 3))
    denoiser, noised = Denoiser(process, lambda x, t: Prediction(x, x, x)), Noised(x, x, x, jnp.array([0.1, 0.9]))
    weighted = Weighted(lambda denoiser, noised, key: noised.x.sum(1), MinSNR())
    assert "has no weight of its own" in str(weighted.refuse(process))
    with pytest.raises(ValueError, match="has no weight of its own"):
        weighted(denoiser, noised, jax.random.key(0))
