"""The average that each law of decays gives: the weight of the parameters of step k after n steps."""

import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.train.ema import AVERAGES, Decay, HalfLife, NoAverage, Power


def weights(law, steps, batch=1):
    """The weights of the initial parameters and of those after each step, `[steps + 1]`: (1 - d_k) d_{k+1} ... d_n."""
    kept = np.broadcast_to(law(jnp.arange(steps), batch), steps).astype(np.float64)
    later = np.append(np.cumprod(kept[::-1])[::-1], 1.0)  # d_k ... d_n
    return np.append(later[0], (1 - kept) * later[1:])


@pytest.mark.parametrize("name", AVERAGES)
def test_weights_are_a_share_of_one_each(name):
    found = weights(AVERAGES[name](), 40, batch=8)
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all() and found[-1] > 0


def test_none_is_the_last():
    assert weights(NoAverage(), 5).tolist() == [0, 0, 0, 0, 0, 1]


def test_a_constant_decay_is_geometric():
    k = np.arange(1, 31)
    np.testing.assert_allclose(weights(Decay(0.9, ramp=False), 30)[1:], 0.1 * 0.9 ** (30 - k), rtol=1e-4)


def test_a_ramp_telescopes():
    """While (1 + k) / (10 + k) is less than the rate, the product over n steps is n! 9! / (n + 9)!."""
    found = weights(Decay(0.9), 30)
    assert found[0] == pytest.approx(1 / np.prod((np.arange(1, 10) + 30) / np.arange(1, 10)), rel=1e-4)
    # From step 80 on the decay is the rate itself.
    np.testing.assert_allclose(weights(Decay(0.9), 100)[81:], 0.1 * 0.9 ** np.arange(19, -1, -1), rtol=1e-4)


@pytest.mark.parametrize("batch", [64, 256])
def test_what_was_averaged_weighs_half_after_a_half_life(batch):
    """After 5120 images, whatever the size of the batch. A large `ramp` has no effect."""
    half = 5120 // batch
    assert weights(HalfLife(5120, ramp=1e9), half, batch)[0] == 0  # the start is forgotten at once
    assert weights(HalfLife(5120, ramp=1e9), 1 + half, batch)[1] == pytest.approx(0.5, rel=1e-5)
    assert weights(HalfLife(5120, ramp=1e9), 1 + 3 * half, batch)[1] == pytest.approx(0.125, rel=1e-5)


def test_the_ramp_keeps_the_half_life_to_a_share_of_the_images_seen():
    """At step k the old average keeps 2^(-1 / (ramp k)), so over a doubling of k about 2^(-log 2 / ramp)."""
    law = HalfLife(images=10**9, ramp=0.5)
    kept = [float(law(jnp.array(k), 64)) for k in (0, 1, 2, 100)]
    assert kept == pytest.approx([0, 0.25, 0.5, 2**-0.02], rel=1e-5)
    product = weights(law, 2000)[:1001].sum()  # the weight of the average of 1000 steps after 2000
    assert product == pytest.approx(2 ** (-np.log(2) / 0.5), rel=1e-3)
    assert float(HalfLife(images=640, ramp=0.5)(jnp.array(1000), 64)) == pytest.approx(2**-0.1)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.25])
def test_the_power_function_weighs_as_a_power_of_the_step(std):
    """The product telescopes to (k / n)^(gamma + 1) - ((k - 1) / n)^(gamma + 1): `std` is the deviation of k / n."""
    law, n = Power(std), 4000
    power, tau = law.gamma + 1, np.arange(n + 1) / n
    found = weights(law, n)
    assert found[0] == 0
    np.testing.assert_allclose(np.cumsum(found)[n // 2 :], tau[n // 2 :] ** power, rtol=1e-3)
    mean = found @ tau
    assert mean == pytest.approx(power / (power + 1), abs=1e-3)
    assert np.sqrt(found @ (tau - mean) ** 2) == pytest.approx(std, rel=2e-3)


def test_the_power_function_late_in_training():
    """1 - d = (gamma + 1) / n. Rounding 1 - 1 / n to float32 would change it by 3 %."""
    law, n = Power(0.1), np.arange(1_000_001, 1_000_101)
    kept = np.asarray(law(jnp.asarray(n - 1), 64), np.float64)
    np.testing.assert_allclose(1 - kept, (law.gamma + 1) / n, rtol=5e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Decay(1.0), "rate=1.0: a number from 0 to below 1 is needed"),
        (lambda: Decay(-0.1), "rate=-0.1"),
        (lambda: HalfLife(0), "images=0: a positive number is needed"),
        (lambda: HalfLife(ramp=0.0), "ramp=0.0"),
        (lambda: Power(0.0), r"std=0.0: between 0 and 12\^\(-1/2\) = 0.2887 is needed"),
        (lambda: Power(0.3), "std=0.3"),
    ],
)
def test_what_averages_nothing_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
