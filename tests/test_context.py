"""The context vector: its layers by hand, no context, and the share of it that training drops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scoregen as sg
from scoregen.nets import MLP, Cond, DiT, UNet, layers
from scoregen.train import Model

NAN = jnp.nan
NETS = {
    "mlp": (MLP(width=8, depth=1, embedding=8, context_dim=3), (2,)),
    "unet": (UNet(8, (1,), 0, (), dropout=0.0, groups=2, context_dim=3), (4, 1)),
    "dit": (DiT(2, 8, 1, 2, context_dim=3), (4, 2)),
}
C = jnp.array([-1.0, 0.5, 2.0])
GIVEN = jnp.array([[0.3, -1.0, 2.0], [0.0, 0.0, 0.0], [1.0, 1.0, -1.0]])


def case(name):
    net, shape = NETS[name]
    x = jax.random.normal(jax.random.key(1), (3, *shape))
    return net, alive(jax.eval_shape(net.init, jax.random.key(0), x, Cond(C))), x


def alive(params):
    """Parameters of unit order: at the start, layers that start at zero hide all layers before them."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(0.5 * rng.standard_normal(a.shape), jnp.float32), params)


def test_the_layers_by_hand():
    """e + W2 swish(W1 [context, 1] + b1) + b2, and for a row of NaN [0, 0, 0] in place of [context, 1]."""

    class Layer(layers.nn.Module):
        @layers.nn.compact
        def __call__(self, e, context):
            return layers.add_context(e, context)

    rng, context = np.random.default_rng(0), np.array([[0.5, -2.0], [np.nan, np.nan]], np.float32)
    w1, b1, w2, b2, e = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 4), 4, (4, 4), 4, (2, 4)))
    params = {"params": {"context1": {"kernel": w1, "bias": b1}, "context2": {"kernel": w2, "bias": b2}}}
    h = np.array([[0.5, -2.0, 1.0], [0.0, 0.0, 0.0]]) @ w1 + b1
    np.testing.assert_allclose(
        Layer().apply(params, jnp.asarray(e), jnp.asarray(context)), e + (h / (1 + np.exp(-h))) @ w2 + b2, rtol=1e-5
    )


@pytest.mark.parametrize("name", NETS)
def test_no_context_is_a_row_of_nan_and_every_example_has_its_own(name):
    net, params, x = case(name)
    apply = jax.jit(net.apply)
    none = apply(params, x, Cond(C, context=jnp.full((3, 3), NAN)))
    np.testing.assert_allclose(apply(params, x, Cond(C)), none, rtol=1e-6, atol=1e-6)
    mixed = apply(params, x, Cond(C, context=GIVEN.at[0].set(NAN)))
    np.testing.assert_allclose(mixed[0], none[0], rtol=1e-5, atol=1e-5)
    assert np.isfinite(mixed).all()
    differs = np.abs(mixed - none).reshape(3, -1).max(1)
    assert differs[1:].min() > 1e-3  # a context of zeros, the second, differs from none too
    moved = apply(params, x, Cond(C, context=GIVEN.at[0].set(NAN).at[2, 1].add(0.5)))
    change = np.abs(moved - mixed).reshape(3, -1).max(1)
    assert change[2] > 1e-3 and change[:2].max() < 1e-5


@pytest.mark.parametrize("name", NETS)
def test_no_nan_reaches_a_gradient(name):
    """Through the parameters, x and the context, in reverse mode and with a jvp inside; no context has no slope."""
    net, params, x = case(name)
    context = GIVEN.at[0].set(NAN)

    def sliced(params, x, context):
        out, pushed = jax.jvp(lambda x: net.apply(params, x, Cond(C, context=context)), (x,), (x,))
        return jnp.sum(out**2) + jnp.vdot(x, pushed)

    quick = {"xla_backend_optimization_level": 0}
    found = jax.jit(jax.grad(sliced, (0, 1, 2)), compiler_options=quick)(params, x, context)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert not found[2][0].any() and np.abs(found[2][1:]).max(1).min() > 0
    used = found[0]["params"]["context1"]["kernel"]
    assert np.abs(used).max(1).min() > 0


def test_a_row_with_some_nan_is_not_taken_for_none():
    net, params, x = case("mlp")
    out = net.apply(params, x, Cond(C, context=GIVEN.at[1, 0].set(NAN)))
    assert np.isfinite(out).all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("name", NETS)
def test_a_context_starts_with_an_effect_of_unit_order(name):
    """At the start, a context of unit scale moves e by about as much as e itself varies."""
    net, _, x = case(name)
    kernel = jax.jit(lambda: net.init(jax.random.key(0), x, Cond(C))["params"]["context1"]["kernel"])()
    expected = 0.02 if name == "dit" else (1 / 4) ** 0.5
    assert np.std(kernel) == pytest.approx(expected, rel=0.5)


@pytest.mark.parametrize("name", NETS)
def test_contexts_that_do_not_fit(name):
    net, params, x = case(name)
    for wrong in (jnp.zeros((3, 2)), jnp.zeros((2, 3)), jnp.zeros(3), jnp.zeros((3, 3), jnp.int32)):
        with pytest.raises(
            ValueError, match=r"3 examples need cond.context as floating-point .*\(3, 3\), as context_dim=3"
        ):
            net.apply(params, x, Cond(C, context=wrong))
    with pytest.raises(ValueError, match=r"leave cond\.context=None, or set its field context_dim"):
        net.clone(context_dim=0).apply(params, x, Cond(C, context=GIVEN))
    with pytest.raises(ValueError, match="context_dim=-1: at least 0"):
        net.clone(context_dim=-1).apply(params, x, Cond(C))


# --- models and objectives


def test_a_model_fills_in_no_context():
    net, shape = NETS["mlp"]
    model = Model(sg.ddpm(), net)
    assert model.context_dim == 3 and Model(sg.ddpm(), MLP()).context_dim == 0
    params = alive(jax.eval_shape(lambda: model.init(jax.random.key(0), (1, *shape))))
    x, t = jnp.ones((3, *shape)), jnp.array([10, 20, 30])
    none = model.denoiser(params)(x, t).eps
    np.testing.assert_array_equal(none, model.denoiser(params, Cond(context=jnp.full((3, 3), NAN)))(x, t).eps)
    assert np.abs(model.denoiser(params, Cond(context=GIVEN))(x, t).eps - none).min() > 1e-3


@dataclasses.dataclass(frozen=True)
class Fields:
    """The fields of a network that an objective reads."""

    num_classes: int = 0
    context_dim: int = 0
    dtype: str = "float32"


class Watching:
    """A model that records the conditions that it gets."""

    process, target, learned_variance, log_variance = sg.ddpm(), "eps", False, False

    def __init__(self, net):
        self.net, self.seen = net, []

    def denoiser(self, params, cond=None, train_key=None):
        self.seen.append(cond)
        return sg.denoiser.from_network(self.process, "eps", lambda x, t: x)

    def uncertainty_weight(self, params, losses, t):
        return losses


def test_label_and_context_are_dropped_together_with_their_probability():
    count = 4000
    cond = Cond(label=jnp.arange(count) % 7, context=jnp.arange(2.0 * count).reshape(count, 2))
    objective, x0 = sg.Objective(sg.EpsilonMSE(), label_dropout=0.2), jnp.zeros((count, 2))
    for net in (Fields(7, 2), Fields(0, 2), Fields(7, 0)):
        model = Watching(net)
        objective(model, {}, jax.random.key(0), x0, cond)
        (seen,) = model.seen
        gone = np.asarray(seen.label) == 7 if net.num_classes else np.isnan(seen.context).all(1)
        assert abs(gone.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / count)
        # A part without a field of the network stays as it is, since its meaning is not known.
        no_label, no_context = gone & (net.num_classes > 0), gone & (net.context_dim > 0)
        np.testing.assert_array_equal(seen.label, np.where(no_label, 7, cond.label))
        np.testing.assert_array_equal(seen.context, np.where(no_context[:, None], np.nan, cond.context))


@pytest.mark.slow
def test_what_is_dropped_teaches_the_network_without_a_context():
    """Each example's gradient is the one with its context, or the one with none, and both occur."""
    net = NETS["mlp"][0].clone(width=4, embedding=4)
    model, x0 = Model(sg.ddpm(), net), jax.random.normal(jax.random.key(2), (8, 2))
    params = alive(jax.eval_shape(lambda: model.init(jax.random.key(0), (1, 2))))
    context = jax.random.normal(jax.random.key(3), (8, 3))

    def slopes(dropout):
        """The gradient of each example, [8, parameters], as a function of the contexts."""
        objective = sg.Objective(sg.EpsilonMSE(), label_dropout=dropout)

        def terms(params, context):
            return objective(model, params, jax.random.key(5), x0, Cond(context=context))

        quick = {"xla_backend_optimization_level": 0}
        found = jax.jit(jax.jacobian(terms), compiler_options=quick)
        return lambda context: np.concatenate(
            [np.asarray(leaf).reshape(8, -1) for leaf in jax.tree.leaves(found(params, context))], 1
        )

    some, whole = slopes(0.5)(context), slopes(0.0)
    all_, none = whole(context), whole(jnp.full((8, 3), NAN))
    assert np.isfinite(some).all() and np.abs(all_ - none).max(1).min() > 1e-3
    kept, gone = (np.abs(some - of).max(1) < 1e-4 for of in (all_, none))
    assert (kept ^ gone).all() and 0 < kept.sum() < 8


def test_there_must_be_something_to_drop():
    objective = sg.Objective(sg.EpsilonMSE(), label_dropout=0.1)
    (refusal,) = objective.refuse(Model(sg.ddpm(), MLP()))
    assert "num_classes is 0 and its context_dim is 0" in refusal.reason
    assert objective.refuse(Model(sg.ddpm(), MLP(context_dim=1))) == []
