"""An objective makes a loss, a weighting and a law of times into one number per example, and refuses wrong parts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.cond import Cond
from scoregen.denoiser import TARGETS, from_network
from scoregen.losses import (
    DSM,
    FDSSM,
    ISM,
    LOSSES,
    SSM,
    VLB,
    WEIGHTINGS,
    X0MSE,
    EDMWeight,
    EpsilonMSE,
    FlowMatching,
    Hybrid,
    Loss,
    MinSNR,
    Objective,
    Weighted,
)
from scoregen.losses.matching import FunctionLoss, sum_dims
from scoregen.process import EDM, PROCESSES, VE, VP, CosineVP, Flow, cosine, ddpm, ncsn, perturb
from scoregen.random import example_keys, split_keys
from scoregen.testing.oracle import TWO_MODES
from scoregen.times import TIMES, LogNormal, Own, SecondMoment, Uniform


@dataclasses.dataclass(frozen=True)
class Net:
    """The fields of a network that an objective reads."""

    num_classes: int = 0
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """A model whose output is a linear map of x and its label, in the place of `scoregen.train.Model`."""

    process: object
    target: str = "v"
    learned_variance: bool = False
    log_variance: bool = False
    net: Net = Net()

    def init(self):
        return {"matrix": 0.1 * jnp.eye(2, dtype=jnp.float32), "shift": jnp.zeros(2, jnp.float32)}

    def denoiser(self, params, cond=None, train_key=None):
        def apply(x, t):
            params_ = jax.tree.map(lambda a: a.astype(x.dtype), params)
            y = x @ params_["matrix"] + params_["shift"][None]
            if cond is not None and cond.label is not None:
                y = y + cond.label[:, None].astype(x.dtype)
            return jnp.concatenate([y, y], 1) if self.learned_variance else y

        return from_network(self.process, self.target, apply, self.learned_variance)

    def uncertainty_weight(self, params, losses, t):
        return 2 * losses + 1 if self.log_variance else losses


@dataclasses.dataclass(frozen=True)
class Huber(Loss):
    """A user's loss that defines only the formula."""

    delta: float = 1.0

    def __call__(self, denoiser, noised, key):
        off = jnp.abs(noised.eps - denoiser(noised.x, noised.t).eps)
        return sum_dims(jnp.where(off < self.delta, 0.5 * off**2, self.delta * (off - 0.5 * self.delta)))


def absolute(denoiser, noised, key):
    return sum_dims(jnp.abs(noised.eps - denoiser(noised.x, noised.t).eps))


def data(count=64, key=0):
    return TWO_MODES.sample(jax.random.key(key), count)


def descend(objective, model, steps=200):
    """The mean term of a large batch before and after some steps of gradient descent."""
    params, big = model.init(), data(2000, 1)

    @jax.jit
    def step(params, key):
        slope = jax.grad(lambda p: objective(model, p, key, data(128)).mean())(params)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, slope)

    before = objective(model, params, jax.random.key(9), big).mean()
    for i in range(steps):
        params = step(params, jax.random.key(i))
    return float(before), float(objective(model, params, jax.random.key(9), big).mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", [Huber(), absolute, lambda *args: absolute(*args)], ids=["class", "function", "lambda"]
)
def test_a_loss_of_ones_own_trains(loss):
    """A class with `__call__` alone, and a plain function."""
    objective, model = Objective(loss), Linear(ddpm(), "eps")
    assert objective.refuse(model) == []
    before, after = descend(objective, model)
    assert after < 0.9 * before


@pytest.mark.quick(1)
@pytest.mark.parametrize(("loss", "name"), [(Huber(), "Huber"), (absolute, "absolute")])
def test_a_weighting_on_a_loss_without_a_weight_is_refused_with_the_reason(loss, name):
    objective, model = Objective(loss, MinSNR()), Linear(ddpm())
    (refused,) = objective.refuse(model)
    assert f"the loss {name} has no weight of its own" in refused.reason
    assert "weight(process, t)" in refused.reason and refused.fixes == ("weighting=own",)
    with pytest.raises(ValueError, match=f"the loss {name} has no weight of its own"):
        objective(model, model.init(), jax.random.key(0), data())
    noised = perturb(ddpm(), jax.random.key(0), data(), jnp.arange(64))
    with pytest.raises(ValueError, match=f"the loss {name} has no weight of its own"):
        Weighted(objective.loss, MinSNR())(model.denoiser(model.init()), noised, jax.random.key(0))


@pytest.mark.slow
def test_it_is_the_loss_at_the_times_that_it_drew():
    """An objective only splits the keys in four, draws times, noises the batch and calls the loss."""
    model, x0, key = Linear(VP()), data(), jax.random.key(3)
    found = Objective(DSM()).evaluate(model, model.init(), key, x0)
    times, noise, inner, _ = split_keys(example_keys(key, 64), 4)
    drawn = Own().draw(VP(), (), times, 64)
    np.testing.assert_array_equal(found.drawn.t, drawn.t)
    want = DSM()(model.denoiser(model.init()), perturb(VP(), noise, x0, drawn.t), inner)
    np.testing.assert_allclose(found.losses, want, rtol=1e-6)
    np.testing.assert_allclose(found.terms, want, rtol=1e-6)
    np.testing.assert_allclose(Objective(DSM())(model, model.init(), key, x0), want, rtol=1e-6)


@pytest.mark.slow
def test_examples_depend_on_their_own_key_alone():
    model, x0, keys = Linear(ddpm()), data(8), jax.random.split(jax.random.key(0), 8)
    objective = Objective(SSM(), MinSNR(), SecondMoment())
    whole = objective(model, model.init(), keys, x0)
    np.testing.assert_allclose(objective(model, model.init(), keys[5:], x0[5:]), whole[5:], rtol=1e-5)
    one = objective(model, model.init(), jax.random.key(1), x0)
    np.testing.assert_allclose(objective(model, model.init(), jax.random.key(1), x0[:3]), one[:3], rtol=1e-5)


def test_the_weighting_and_the_uncertainty_come_in():
    model, x0, key = Linear(VP(), log_variance=True), data(), jax.random.key(3)
    bare, weighted = (Objective(DSM(), by).evaluate(model, model.init(), key, x0) for by in (None, MinSNR()))
    t = bare.drawn.t
    factor = MinSNR()(VP(), t) / DSM().weight(VP(), t)
    np.testing.assert_allclose(weighted.losses, factor * bare.losses, rtol=1e-5)
    np.testing.assert_allclose(weighted.terms, 2 * weighted.losses + 1, rtol=1e-5)


@pytest.mark.quick(1)
@pytest.mark.parametrize("times", TIMES)
def test_which_laws_of_times_are_importance_sampling(times):
    """An ordinary loss is multiplied by p / q if the law is importance sampling; the bound always is."""
    model, x0, key, law = Linear(VP()), data(), jax.random.key(3), TIMES[times]()
    for loss in (DSM(), VLB()):
        found = Objective(loss, times=law).evaluate(model, model.init(), key, x0)
        ratio = found.drawn.ratio if law.importance or isinstance(loss, VLB) else 1.0
        np.testing.assert_allclose(found.terms, ratio * found.losses, rtol=1e-5)
    assert times in ("own", "uniform", "second_moment") or np.ptp(found.drawn.ratio) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "law", [Uniform(), LogNormal(), LogNormal(-0.5, 2.0), TIMES["logsnr"](), TIMES["logitnormal"]()]
)
@pytest.mark.parametrize("process", [VP(t_min=0.1), EDM(0.3, 5.0)], ids=["vp", "edm"])
def test_the_bound_is_the_same_under_every_law_of_times(process, law):
    """The bound is by definition an average over the process's own times, whatever law draws the times.

    The means are in bits per dimension, between noise levels at which no law has a heavy tail.
    """

    class Exact(Linear):
        def denoiser(self, params, cond=None, train_key=None):
            return TWO_MODES.denoiser(self.process)

    def mean(times):
        terms = Objective(VLB(), times=times)(Exact(process), {}, jax.random.key(1), data(100_000))
        return float(terms.mean()), float(terms.std()) / np.sqrt(terms.size)

    (ours, error), (own, own_error) = mean(law), mean(TIMES["logsnr"]())
    assert error < 0.05 * abs(own) + 0.05, "too few draws to say anything"
    assert abs(ours - own) < 4 * np.hypot(error, own_error)


@pytest.mark.slow
def test_what_the_law_learns_is_a_state():
    model, x0, objective = Linear(ddpm(steps=25)), data(), Objective(EpsilonMSE(), times=SecondMoment(1))
    state = objective.init(model.process)
    for i in range(20):
        found = objective.evaluate(model, model.init(), jax.random.key(i), x0, state=state)
        state = objective.update(state, found.drawn, found.losses)
    assert np.ptp(found.drawn.ratio) > 0.01
    fresh = objective.evaluate(model, model.init(), jax.random.key(i), x0)
    np.testing.assert_allclose(fresh.drawn.ratio, 1.0, rtol=1e-5)  # nothing learned yet


@pytest.mark.slow
def test_labels_are_dropped_with_their_probability_and_by_example():
    seen = []

    class Watching(Linear):
        def denoiser(self, params, cond=None, train_key=None):
            seen.append(cond)
            return super().denoiser(params, cond, train_key)

    model = Watching(ddpm(), net=Net(num_classes=7))
    x0, keys = data(4000), example_keys(jax.random.key(0), 4000)
    cond = Cond(noise=None, label=jnp.arange(4000) % 7, augment=jnp.ones((4000, 9)))
    Objective(DSM(), label_dropout=0.2)(model, model.init(), keys, x0, cond)
    Objective(DSM(), label_dropout=0.2)(model, model.init(), keys[:5], x0[:5], jax.tree.map(lambda a: a[:5], cond))
    Objective(DSM())(model, model.init(), keys, x0, cond)
    dropped = np.asarray(seen[0].label) == 7
    assert abs(dropped.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 4000)
    np.testing.assert_array_equal(np.asarray(seen[0].label)[~dropped], np.asarray(cond.label)[~dropped])
    np.testing.assert_array_equal(seen[1].label, seen[0].label[:5])
    np.testing.assert_array_equal(seen[2].label, cond.label)
    np.testing.assert_array_equal(seen[0].augment, cond.augment)


def test_the_key_for_dropout_reaches_the_model():
    class Needs(Linear):
        def denoiser(self, params, cond=None, train_key=None):
            assert train_key is self.net
            return super().denoiser(params, cond)

    key = jax.random.key(5)
    Objective(DSM())(Needs(VP(), net=key), Linear(VP()).init(), jax.random.key(0), data(), train_key=key)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("x64", [False, True])
def test_the_terms_keep_the_dtype_of_the_data(x64, name):
    """The terms stay float32 for every law of times and weighting, also if JAX's default is float64."""
    with jax.enable_x64(x64):
        model, x0 = Linear(PROCESSES[name]()), data(4).astype(jnp.float32)
        for law in TIMES.values():
            for loss, by in ((DSM(), None), (DSM(), WEIGHTINGS["likelihood"]()), (VLB(), None)):
                objective = Objective(loss, by, law())
                if objective.refuse(model):
                    continue
                call = functools.partial(objective, model)
                found = jax.eval_shape(call, model.init(), jax.random.key(0), x0)
                assert found.dtype == jnp.float32 and found.shape == (4,)


# --- what is refused

LEARNED = VLB(variance="learned")
PLAIN = functools.partial(Linear, target="eps")

# A refused objective and model, a part of the reason, one of the fixes, and an objective and model that are accepted.
REFUSED = {
    "velocity of a chain": (Objective(DSM()), Linear(ddpm(), "velocity"), "derivative in time", "target=v",
                            Objective(DSM()), Linear(VP(), "velocity")),
    "flow of a chain": (Objective(FlowMatching()), Linear(ncsn()), "derivative in time", "process=ve",
                        Objective(FlowMatching()), Linear(VE())),
    "weighted flow": (Objective(FlowMatching(), MinSNR()), Linear(cosine()), "derivative in time", "loss=x0",
                      Objective(X0MSE(), MinSNR()), Linear(cosine())),
    "edm target": (Objective(X0MSE()), Linear(EDM(data_std=0.0), "edm"), "standard deviation", "process.data_std=0.5",
                   Objective(X0MSE()), Linear(EDM(data_std=0.5), "edm")),
    "edm weight": (Objective(X0MSE(), EDMWeight()), Linear(VE(data_std=0.0), "x0"), "standard deviation",
                   "process.data_std=0.5", Objective(X0MSE(), EDMWeight()), Linear(VE(data_std=0.5), "x0")),
    "eps at the end of flow": (Objective(DSM()), PLAIN(Flow()), "alpha = 0", "target=x0",
                               Objective(DSM()), Linear(Flow(), "x0")),
    "weight 0 at the end of flow": (Objective(DSM(), MinSNR()), Linear(Flow()), "has weight 0", "loss=flow",
                                    Objective(FlowMatching(), MinSNR()), Linear(Flow())),
    "large variance": (Objective(VLB(variance="large")), PLAIN(VP()), "steps have a length", "process=ddpm",
                       Objective(VLB(variance="large")), PLAIN(ddpm())),
    "learned variance": (Objective(Hybrid()), PLAIN(CosineVP(), learned_variance=True), "steps have a length",
                         "process=cosine", Objective(Hybrid()), PLAIN(cosine(), learned_variance=True)),
    "hybrid without a variance": (Objective(Hybrid()), PLAIN(ddpm()), "Hybrid trains the variance",
                                  "model.learned_variance=true", Objective(Hybrid()),
                                  PLAIN(ddpm(), learned_variance=True)),
    "vlb without a variance": (Objective(LEARNED), PLAIN(ddpm()), "VLB trains the variance",
                               "model.learned_variance=true", Objective(LEARNED), PLAIN(ddpm(), learned_variance=True)),
    "nothing trains it": (Objective(DSM()), PLAIN(ddpm(), learned_variance=True), "no loss would train", "loss=hybrid",
                          Objective(Hybrid()), PLAIN(ddpm(), learned_variance=True)),
    "vlb does not": (Objective(VLB()), PLAIN(ddpm(), learned_variance=True), "no loss would train",
                     "loss.variance=learned", Objective(LEARNED), PLAIN(ddpm(), learned_variance=True)),
    "bound from a uniform start": (Objective(VLB()), PLAIN(ncsn(start="uniform")), "uniform law",
                                   "process.start=normal", Objective(VLB()), PLAIN(ncsn())),
    "hybrid from a uniform start": (Objective(Hybrid()), PLAIN(ncsn(start="uniform"), learned_variance=True),
                                    "uniform law", "process.start=normal", Objective(Hybrid()),
                                    PLAIN(ncsn(), learned_variance=True)),
    "weighted bound": (Objective(VLB(), MinSNR()), PLAIN(ddpm()), "make it a bound", "loss=eps",
                       Objective(EpsilonMSE(), MinSNR()), PLAIN(ddpm())),
    "half precision": (Objective(FDSSM()), PLAIN(ddpm(), net=Net(dtype="bfloat16")), "bfloat16 rounds away",
                       "net.dtype=float32", Objective(FDSSM()), PLAIN(ddpm(), net=Net(dtype="float32"))),
    "weighted, too": (Objective(FDSSM(), EDMWeight()), PLAIN(ddpm(), net=Net(dtype="bfloat16")), "bfloat16",
                      "loss=ssm", Objective(SSM(), EDMWeight()), PLAIN(ddpm(), net=Net(dtype="bfloat16"))),
    "uncertainty of ssm": (Objective(SSM()), PLAIN(ddpm(), log_variance=True), "may be negative", "loss=dsm",
                           Objective(DSM()), PLAIN(ddpm(), log_variance=True)),
    "uncertainty of a weighted one": (Objective(SSM(), EDMWeight()), PLAIN(ddpm(), log_variance=True), "negative",
                                      "model.log_variance=false", Objective(SSM(), EDMWeight()), PLAIN(ddpm())),
    "labels of a net without": (Objective(DSM(), label_dropout=0.1), PLAIN(ddpm()), "num_classes is 0",
                                "label_dropout=0", Objective(DSM()), PLAIN(ddpm())),
}  # fmt: skip


@pytest.mark.quick(3)
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_why_and_what_to_do_instead(case):
    objective, model, reason, fix, instead, with_model = REFUSED[case]
    (refused,) = objective.refuse(model)
    assert reason in refused.reason and fix in refused.fixes
    assert "\n" not in str(refused) and len(str(refused)) < 300 and "--" not in str(refused)
    assert not refused.reason.endswith(".")
    assert instead.refuse(with_model) == []
    with pytest.raises(ValueError, match="take "):
        objective(model, model.init(), jax.random.key(0), data(4))
    assert np.isfinite(instead(with_model, with_model.init(), jax.random.key(0), data(4))).all()


def test_all_reasons_come_together_and_once():
    """A uniform start, a weighted bound, no learned variance, and an uncertainty for a loss that may be negative."""
    model = PLAIN(ncsn(start="uniform"), log_variance=True)
    found = [refusal.reason for refusal in Objective(LEARNED, MinSNR()).refuse(model)]
    assert len(found) == len(set(found)) == 4
    for word in ("uniform", "make it a bound", "trains the variance", "negative"):
        assert sum(word in reason for reason in found) == 1
    # The loss and the model both need the variance of a step, which is one reason.
    both = Objective(VLB(variance="learned")).refuse(PLAIN(VP(), learned_variance=True))
    assert len(both) == 1


def test_ism_is_refused_for_many_dimensions_where_they_are_known():
    model = PLAIN(ddpm())
    assert Objective(ISM()).refuse(model) == []
    (refused,) = Objective(ISM()).refuse(model, 3072)
    assert refused.fixes == ("loss=ssm", "loss.max_dims=3072") and "3072 dimensions" in refused.reason
    assert Objective(ISM(3072)).refuse(model, 3072) == Objective(SSM()).refuse(model, 3072) == []
    assert len(Objective(ISM(), MinSNR()).refuse(model, 257)) == 1


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("loss", [DSM(), VLB(), FlowMatching()])
def test_every_law_of_times_is_for_every_loss(loss, times):
    assert Objective(loss, times=TIMES[times]()).refuse(Linear(VP())) == []


def test_an_uncertainty_is_for_what_is_positive():
    """A loss declares whether it is positive, and a weighting does not change this."""
    model = PLAIN(ddpm(), log_variance=True)
    for loss in (EpsilonMSE(), DSM(), X0MSE(), Huber(), absolute, Weighted(DSM(), EDMWeight())):
        assert Objective(loss).refuse(model) == []
    for loss in (ISM(), SSM(), FDSSM(), VLB(), Weighted(SSM(), EDMWeight())):
        assert len(Objective(loss).refuse(model)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PROCESSES)
def test_what_is_allowed_works(name, target):
    """For all processes x targets x losses: the terms of a batch are finite, or the combination is refused."""
    process, x0 = PROCESSES[name](), data(8)
    for loss_name, kind in LOSSES.items():
        for loss in kind.variants().values():
            model, objective = Linear(process, target, loss.trains_variance), Objective(loss)
            if objective.refuse(model, 2):
                continue
            terms = objective(model, model.init(), jax.random.key(1), x0)
            assert np.isfinite(terms).all(), (loss_name, terms)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Objective(EpsilonMSE), r"such as EpsilonMSE\(\)"),
        (lambda: Objective("eps"), "a loss is needed"),
        (lambda: Objective(EpsilonMSE(), MinSNR), r"such as MinSNR\(\)"),
        (lambda: Objective(EpsilonMSE(), "min_snr"), "a weighting is needed"),
        (lambda: Objective(EpsilonMSE(), times=Uniform), r"such as Uniform\(\)"),
        (lambda: Objective(EpsilonMSE(), None, "uniform"), "a law of times is needed"),
        (lambda: Objective(EpsilonMSE(), label_dropout=1.0), "label_dropout=1.0"),
        (lambda: Objective(EpsilonMSE(), label_dropout=-0.1), "label_dropout=-0.1"),
    ],
)
def test_wrong_parts_are_said_at_once(make, match):
    with pytest.raises((TypeError, ValueError), match=match):
        make()


def test_a_loss_that_is_one_number_is_said():
    model = Linear(VP())
    with pytest.raises(ValueError, match=r"the loss gives \[\] for 4 examples"):
        Objective(lambda denoiser, noised, key: jnp.mean(noised.x))(model, model.init(), jax.random.key(0), data(4))


def test_a_weighted_loss_is_its_two_parts():
    one, other = Objective(Weighted(DSM(), MinSNR())), Objective(DSM(), MinSNR())
    assert one == other and hash(one) == hash(other)
    assert isinstance(Objective(absolute).loss, FunctionLoss)
