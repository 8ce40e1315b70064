"""A model, which is a network with a process: the network's input, the meaning of its output, and its refusals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import scoregen as sg
from scoregen.denoiser import CONDITIONS, TARGETS, input_scale, solve
from scoregen.train import Model, init_state

X, T = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), jnp.array([10, 400, 900])


def mlp(**fields):
    return sg.nets.MLP(width=8, depth=1, embedding=8, **fields)


class Spy:
    """A network that records its arguments and returns x."""

    def __init__(self, **fields):
        self.seen = []
        self.__dict__.update(fields)

    def init(self, key, x, cond, train=False):
        return {"params": {}}

    def apply(self, params, x, cond, train=False, rngs=None):
        self.seen.append((x, cond, train, rngs))
        return x


class Own(nn.Module):
    """A user's network, with any dtype."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, cond, train=False):
        return nn.Dense(x.shape[-1], dtype=self.dtype)(x) * cond.noise.reshape(-1, *[1] * (x.ndim - 1)).astype(
            self.dtype
        )


@pytest.mark.quick(1)
@pytest.mark.parametrize("target", TARGETS)
def test_the_denoiser_solves_for_the_target_of_the_network(target):
    model = Model(sg.VP(), mlp(), target, "logsnr")
    params, t = model.init(jax.random.key(0), (1, 4)), jnp.array([0.1, 0.5, 0.9])
    found = model.denoiser(params)(X, t)
    output = model.net.apply(params["net"], X, sg.Cond(CONDITIONS["logsnr"](model.process, t)))
    expected = solve(model.process, TARGETS[target], output, X, t)
    for a, b in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_network_is_given_the_noise_level_as_the_condition_says(condition):
    spy = Spy()
    model = Model(sg.ddpm(), spy, "x0", condition)
    model.denoiser({"net": {}})(X, T)
    (_, cond, train, rngs), expected = spy.seen[0], CONDITIONS[condition](model.process, T)
    np.testing.assert_array_equal(cond.noise, expected)
    assert cond.noise.dtype == jnp.float32 and not train and rngs == {}
    own = Model(sg.ddpm(), spy, lambda process, t: (1 + 0 * process.alpha(t), 0 * process.alpha(t)), lambda p, t: 2 * t)
    np.testing.assert_array_equal(own.denoiser({"net": {}})(X, T).x0, X)
    np.testing.assert_array_equal(spy.seen[1][1].noise, 2 * T)


@pytest.mark.slow
def test_parameters_do_not_depend_on_the_batch_and_hold_the_learned_variance_of_the_loss():
    model = Model(sg.ddpm(), mlp(), log_variance=True)
    few, many = (model.init(jax.random.key(0), (n, 4)) for n in (1, 7))
    assert sorted(few) == ["log_variance", "net"]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), few, many))
    alone = Model(sg.ddpm(), mlp()).init(jax.random.key(0), (1, 4))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), few["net"], alone["net"]))


def test_scaled_and_centered_inputs():
    t = jnp.array([0.1, 0.5, 0.9])
    process = sg.Flow(data_std=0.5)
    shifted = 2 * X - process.alpha(t)[:, None]
    scale = input_scale(process, t)[:, None]
    for options, expected in (
        ({}, X),
        ({"unit_input": True}, scale * X),
        ({"centered": True}, shifted),
        ({"unit_input": True, "centered": True}, 0.5 * scale * shifted),
    ):
        spy = Spy()
        Model(process, spy, "v", **options).denoiser({"net": {}})(X, t)
        np.testing.assert_allclose(spy.seen[0][0], expected, rtol=1e-6)


def test_labels_and_augmentation_are_given_or_none():
    """Without labels, a network with classes gets the label of no class; without augmentation numbers, zeros."""
    spy = Spy(num_classes=5, augment_dim=9)
    model = Model(sg.ddpm(), spy)
    model.denoiser({"net": {}})(X, T)
    label, numbers = jnp.array([0, 1, 4]), jnp.ones((3, 9))
    model.denoiser({"net": {}}, sg.Cond(label=label, augment=numbers))(X, T)
    (_, nothing, *_), (_, given, *_) = spy.seen
    assert nothing.label.tolist() == [5, 5, 5] and not nothing.augment.any() and nothing.augment.shape == (3, 9)
    assert given.label is label and given.augment is numbers
    spy = Spy()
    Model(sg.ddpm(), spy).denoiser({"net": {}}, sg.Cond(context=numbers))(X, T)
    assert spy.seen[0][1].label is None and spy.seen[0][1].augment is None and spy.seen[0][1].context is numbers


@pytest.mark.slow
def test_dropout_is_for_training_and_hangs_on_its_key():
    model = Model(sg.ddpm(), mlp(dropout=0.5))
    # The last layer starts at nearly zero, which would hide the dropout.
    params = jax.tree.map(lambda a: a + 0.1, model.init(jax.random.key(0), (1, 4)))
    keys = None, None, jax.random.key(1), jax.random.key(1), jax.random.key(2)
    a, b, c, d, e = (model.denoiser(params, train_key=key)(X, T).x0 for key in keys)
    assert (a == b).all() and (c == d).all() and not (a == c).all() and not (c == e).all()


def test_a_denoiser_is_an_argument_of_jit_and_does_not_recompile():
    traced = []

    @jax.jit
    def use(denoiser, x):
        traced.append(1)
        return denoiser(x, 400).x0

    for options in ({}, {"energy": True}):
        model = Model(sg.ddpm(), Own(), **options)
        traced.clear()
        results = [use(model.denoiser(model.init(jax.random.key(i), (1, 4))), X) for i in range(2)]
        assert len(traced) == 1 and not jnp.allclose(*results)


@pytest.mark.slow
def test_learned_variance_doubles_the_outputs_and_energy_gives_a_density():
    model = Model(sg.ddpm(), mlp(), learned_variance=True)
    found = model.denoiser(model.init(jax.random.key(0), (1, 4)))(X, T)
    assert found.x0.shape == found.between.shape == X.shape
    narrow = Model(sg.ddpm(), mlp(out_channels=4), learned_variance=True)
    with pytest.raises(ValueError, match="twice as many channels as x, for a learned variance"):
        narrow.denoiser(narrow.init(jax.random.key(0), (1, 4)))(X, T)
    energy = Model(sg.ddpm(), mlp(), energy=True)
    denoiser = energy.denoiser(energy.init(jax.random.key(0), (1, 4)))
    found = denoiser(X, T)
    slope = jax.grad(lambda x: denoiser(x, T).log_density.sum())(X)
    np.testing.assert_allclose(found.score, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("net", [mlp(), Own(), Own("bfloat16")], ids=["mlp", "own", "bfloat16"])
def test_a_prediction_has_the_type_of_x(net, x64):
    with jax.enable_x64(x64):
        for process, t in ((sg.ddpm(), T), (sg.VP(), jnp.array([0.1, 0.5, 0.9]))):
            model = Model(process, net, unit_input=True, log_variance=True)
            params = model.init(jax.random.key(0), (1, 4))
            assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
            for dtype in (jnp.float32, jnp.float64) if x64 else (jnp.float32,):
                x = X.astype(dtype)
                # Float64 data and float32 parameters are mixed inside the network.
                with jax.numpy_dtype_promotion("strict" if dtype == jnp.float32 else "standard"):
                    found = model.denoiser(params)(x, t)
                    weighted = model.uncertainty_weight(params, x[:, 0] ** 2, t)
                assert {a.dtype for a in found[:3]} == {x.dtype} and weighted.dtype == x.dtype


def test_the_uncertainty_weight():
    model = Model(sg.ddpm(), mlp(), log_variance=True)
    params = jax.tree.map(lambda a: a + 0.1, model.init(jax.random.key(0), (1, 4)))
    losses = jnp.array([1.0, 2.0, 3.0])
    u = sg.nets.LogVariance().apply(params["log_variance"], model.process.logsnr(T))
    np.testing.assert_allclose(model.uncertainty_weight(params, losses, T), losses / jnp.exp(u) + u, rtol=1e-6)
    assert Model(sg.ddpm(), mlp()).uncertainty_weight({}, losses, T) is losses


@pytest.mark.parametrize(
    ("model", "reasons"),
    [
        (Model(sg.ddpm(), mlp()), []),
        (Model(sg.ddpm(), mlp(), "velocity"), [("a derivative in time", "target=v", "process=vp")]),
        (Model(sg.Flow(), mlp(), "eps"), [("alpha = 0", "target=velocity")]),
        (Model(sg.Flow(), mlp(), "score"), [("alpha = 0", "target=x0")]),
        (Model(sg.Flow(), mlp(), "velocity"), []),
        (Model(sg.VE(data_std=0.0), mlp(), "edm"), [("standard deviation", "process.data_std=0.5")]),
        (Model(sg.EDM(), mlp(), condition="index"), [("an index", "model.condition=")]),
        (Model(sg.EDM(), mlp(), condition="rescaled"), [("an index", "model.condition=")]),
        (Model(sg.VP(), mlp(), condition="index"), []),
        (
            Model(sg.ddpm(), mlp(), energy=True, learned_variance=True),
            [("learn the variance of a step", "model.energy=false")],
        ),
        (Model(sg.Flow(), mlp(), "v", energy=True), [("gradient of an energy", "process.t_max=0.999")]),
        (Model(sg.VE(data_std=0.0), mlp(), unit_input=True), [("unit variance", "process.data_std=0.5")]),
        (
            Model(sg.VP(), sg.nets.RefineNet(levels=10), condition="index"),
            [("RefineNet has parameters for each level", "net=unet", "process=ncsn")],
        ),
        (Model(sg.ncsn(), sg.nets.RefineNet(levels=10)), [("one form only", "model.condition=index")]),
        (Model(sg.ncsn(), sg.nets.RefineNet(levels=10), condition="index"), []),
        (
            Model(sg.ncsn(0.01, 1.0, 8), Spy(levels=10, needs_levels=True), condition="index"),
            [("for 10 levels", "this chain has 8", "net.levels=8")],
        ),
        (
            Model(sg.ncsn(), sg.nets.RefineNetV2(), "eps", "logsnr"),
            [("one form only", "model.condition=sigma"), ("divided by sigma", "target=score")],
        ),
        (Model(sg.ncsn(), Spy(condition=True, target=["eps"])), []),  # other fields of the same name
        (
            Model(sg.Flow(), mlp(), "eps", energy=True, learned_variance=True),
            [("says nothing about the clean data",), ("learn the variance of a step",), ("gradient of an energy",)],
        ),
    ],
    ids=lambda value: "" if isinstance(value, list) else type(value.process).__name__,
)
def test_what_does_not_go_together_is_listed(model, reasons):
    found = model.refuse()
    assert len(found) == len(reasons), [str(refusal) for refusal in found]
    for refusal, parts in zip(found, reasons, strict=True):
        assert all(part in str(refusal) for part in parts), str(refusal)
        assert "--" not in str(refusal) and not refusal.reason.endswith(".")


def test_all_reasons_of_model_and_objective_in_one_error():
    model = Model(sg.Flow(), mlp(), "eps", energy=True, learned_variance=True)
    objective = sg.Objective(sg.EpsilonMSE(), label_dropout=0.1)
    with pytest.raises(ValueError, match="reasons why these parts cannot be combined") as caught:
        init_state(model, objective, optax.adam(1e-3), (1, 4))
    message = str(caught.value)
    parts = (
        "says nothing about the clean data",
        "learn the variance of a step",
        "gradient of an energy",
        "num_classes is 0",
        "no loss would train",
    )
    assert all(message.count(part) == 1 for part in parts), message
    with pytest.raises(ValueError, match=r"says nothing about the clean data: take .*target=velocity"):
        init_state(Model(sg.Flow(), mlp(), "eps"), sg.Objective(sg.EpsilonMSE()), optax.adam(1e-3), (1, 4))


class NoTrain(nn.Module):
    @nn.compact
    def __call__(self, x, cond):
        return x


class Batched(nn.Module):
    @nn.compact
    def __call__(self, x, cond, train=False):
        return nn.BatchNorm(use_running_average=not train)(x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: Model(sg.ddpm, mlp()),
            TypeError,
            r"process=the function ddpm: a Process is needed, such as sg.ddpm\(\)",
        ),
        (lambda: Model(sg.ddpm(), sg.nets.MLP), TypeError, r"a Flax Linen module is needed.*say MLP\(\)"),
        (lambda: Model(sg.ddpm(), lambda x, c: x), TypeError, "a Flax Linen module is needed"),
        (lambda: Model(sg.ddpm(), NoTrain()), TypeError, r"a network is called as net\(x, cond, train=False\)"),
        (lambda: Model(sg.ddpm(), mlp(), "noise"), ValueError, "no target 'noise'.*eps, x0"),
        (lambda: Model(sg.ddpm(), mlp(), "epz"), ValueError, "did you mean 'eps'"),
        (lambda: Model(sg.ddpm(), mlp(), condition="logsn"), ValueError, "did you mean 'logsnr'"),
        (lambda: Model(sg.ddpm(), mlp(), 3), TypeError, "a name is needed"),
        (lambda: Model(sg.ddpm(), Batched()).init(jax.random.key(0), (1, 4)), ValueError, "batch_stats.*GroupNorm"),
        (lambda: Model(sg.ddpm(), mlp()).init(0, (1, 4)), TypeError, r"jax.random.key\(0\)"),
        (lambda: Model(sg.ddpm(), mlp()).init(jax.random.key(0), 2), ValueError, "the shape of a batch is needed"),
    ],
)
def test_wrong_use_is_answered_with_the_right_call(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_denoiser_needs_parameters():
    model = sg.Model(sg.ddpm(), sg.nets.MLP(width=8))
    state = sg.init_state(model, sg.Objective(sg.EpsilonMSE()), optax.adam(1e-3), (1, 2), 0)
    with pytest.raises(TypeError, match=r"params is a State: say model.denoiser\(state.ema\)"):
        model.denoiser(state)
    with pytest.raises(TypeError, match="params is a NoneType: parameters from `init` are needed"):
        model.denoiser(None)
