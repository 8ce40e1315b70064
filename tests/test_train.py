"""The step follows the equations and is traced once, and a run that is cut anywhere ends in the same bits."""

import dataclasses
import io
import itertools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from refusal import refused
from rich.console import Console
from small import close, digits, learned, same, toy

import scoregen as sg
from scoregen.errors import UsageError
from scoregen.nets import LogVariance
from scoregen.random import example_keys, split_keys
from scoregen.times import Drawn
from scoregen.train import AVERAGES, OPTIMIZERS, SCHEDULES, Bar, MetricsLog, make_optimizer
from scoregen.train.checkpoint import Checkpoints
from scoregen.train.step import check_even


@dataclasses.dataclass
class Counted:
    """A loss that counts how often Python runs it, and with how many examples."""

    sizes: list
    loss: object = sg.EpsilonMSE()

    def __call__(self, denoiser, noised, key):
        self.sizes.append(len(noised.x))
        return self.loss(denoiser, noised, key)


def counted(parts):
    """The same parts with a loss that counts, and its counts."""
    sizes = []
    return dataclasses.replace(parts, objective=dataclasses.replace(parts.objective, loss=Counted(sizes))), sizes


@pytest.mark.slow
def test_every_program_is_traced_once():
    parts, sizes = counted(toy(microbatch=4))
    state, step = parts.init(), parts.step()
    for i in range(3):
        state, _ = step(state, parts.x0(i))
    assert sizes == [4, 4]  # once for each of the two microbatches, whatever the number of steps
    evaluate = parts.eval()
    assert evaluate(state.params) == evaluate(state.params) != evaluate(state.ema)
    assert sizes == [4, 4, 4]


@pytest.mark.slow
def test_a_whole_run_traces_step_and_held_out_loss_once(tmp_path):
    """With checkpoints, held-out losses and a callback. A first trace, with 2 examples, evaluates only shapes."""
    parts, sizes = counted(toy())
    seen = []
    parts.fit(tmp_path, callback=lambda step, state: seen.append((step, int(state.step))))
    assert sizes == [2, 8, 8]
    assert seen == [(k, k) for k in range(1, 7)]


@pytest.mark.slow
@pytest.mark.parametrize("make", [toy, digits, learned])
def test_a_run_that_is_cut_ends_in_the_same_bits(tmp_path, make):
    straight = make().fit(tmp_path / "straight")
    seen = []
    first = make().fit(tmp_path / "cut", callback=lambda step, _: seen.append(step), stopped=lambda: len(seen) == 4)
    assert int(first.step) == 4
    second = make().fit(tmp_path / "cut")
    assert int(straight.step) == int(second.step) == 6
    for part in ("params", "ema", "opt_state", "times"):
        assert same(getattr(straight, part), getattr(second, part)), part
    assert not same(straight.params, straight.ema)
    if make is learned:  # the law was no longer uniform when the run was cut
        losses, seen = first.times
        assert seen.min() >= 2 and np.ptp(np.sqrt(np.mean(losses**2, 1))) > 0.01
        moved = jax.tree.map(lambda a: float(np.abs(a).max()) > 1e-5, straight.params["log_variance"])
        assert all(jax.tree.leaves(moved))

    rows = [MetricsLog.read(tmp_path / name) for name in ("straight", "cut")]
    losses = [{row["step"]: row["loss"] for row in found if "loss" in row} for found in rows]
    assert losses[0] == losses[1]
    steps = [row["step"] for row in rows[1] if "loss" in row]
    assert steps == sorted(set(steps)) == list(range(1, 7))


def test_metrics_beyond_the_checkpoint_are_dropped(tmp_path):
    """As after a kill: lines were written, the checkpoint was not, and the last line is cut short."""
    with MetricsLog(tmp_path, 0) as log:
        for step in range(1, 6):
            log.write(step, loss=float(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with MetricsLog(tmp_path, resume_at=3) as log:
        log.write(4, loss=40.0)
    assert [(row["step"], row["loss"]) for row in MetricsLog.read(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]


def test_metrics_are_strict_json(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        log.write(1, loss=float("inf"), grad_norm=float("nan"), pace=2.0)

    def no_constant(name):
        raise AssertionError(f"{name} is no JSON")

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=no_constant) == {"step": 1, "loss": None, "grad_norm": None, "pace": 2.0}


def test_the_loss_is_the_hand_written_one():
    """Ho et al. 2020, eq. 14, spelled out: x = sqrt(abar) x0 + sqrt(1 - abar) eps, and the mean of (eps - net)^2.

    The keys too: the step's key gives each example's key, and one half of this key is the objective's, split in four.
    """
    parts = toy(batch=5, seed=3)
    state = dataclasses.replace(parts.init(), step=jnp.int32(7))
    raw = parts.x0(7)

    noise, _ = jax.random.split(jax.random.fold_in(jax.random.key(3), 7))
    losses = []
    for i in range(5):
        _, objective = jax.random.split(jax.random.fold_in(noise, i))
        time, eps_key, _, _ = jax.random.split(objective, 4)
        t = int(1000 * jax.random.uniform(time, ()))
        eps = np.asarray(jax.random.normal(eps_key, (2,)), np.float64)
        betas = np.linspace(1e-4, 0.02, 1000)
        abar = np.prod(1 - betas[: t + 1])
        x = np.sqrt(abar) * raw[i] + np.sqrt(1 - abar) * eps
        c = np.log(abar / (1 - abar))
        net = parts.model.net.apply(state.params["net"], x[None].astype(np.float32), sg.Cond(np.float32([c])))
        losses.append(np.mean((eps - np.asarray(net)[0]) ** 2))
    _, metrics = parts.step()(state, raw)
    assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("make", [toy, learned])
def test_microbatches_make_the_same_step(make):
    states, losses = [], []
    # The gradient is clipped: all that comes after the sum of the microbatches must happen once.
    optimizer = make_optimizer("adam", "constant", 0.01, clip=0.1)
    for microbatch in (0, 2):
        parts = make(microbatch=microbatch, optimizer=optimizer)
        state, metrics = parts.step()(parts.init(), parts.x0(0))
        states.append(jax.tree.map(np.asarray, state))
        losses.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    for state, loss in zip(states[1:], losses[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-5)
        moments = [optax.tree.get(s.opt_state, "mu") for s in (states[0], state)]
        assert close(*moments, rtol=1e-4, atol=1e-7)
        assert close(states[0].params, state.params, atol=2e-5)
        assert close(states[0].times, state.times, rtol=1e-5)
        assert make is toy or int(state.times[1].sum()) == 16


@pytest.mark.slow
def test_steps_differ_by_their_number_and_by_the_seed():
    """The same batch and the same parameters: only the key changes."""
    losses = {}
    for seed, number in ((0, 0), (0, 1), (1, 0)):
        parts = toy(seed=seed)
        state = dataclasses.replace(toy().init(), step=jnp.int32(number))
        losses[seed, number] = float(parts.step()(state, toy().x0(0))[1]["loss"])
    assert len(set(losses.values())) == 3


def test_the_first_average_has_buffers_of_its_own_and_the_state_is_donated():
    parts = toy()
    state = parts.init()
    pairs = zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True)
    assert all(a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer() for a, b in pairs)
    after, _ = parts.step()(state, parts.x0(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


@pytest.mark.slow
def test_training_keeps_float32_where_64_bit_types_are_on():
    """With a learned law of times and a learned variance of the loss, which may hold 64-bit numbers."""
    with jax.enable_x64(True):
        parts = learned()
        state, metrics = parts.step()(parts.init(), parts.x0(0))
        assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.ema))} == {jnp.dtype("float32")}
        assert metrics["loss"].dtype == jnp.float32 and isinstance(parts.eval()(state.ema), float)


@pytest.mark.slow
def test_noise_depends_on_the_example_not_on_the_batch():
    """The first two of eight examples get the loss that they get alone."""
    parts = toy()
    params, raw = parts.init().params, parts.x0(0)
    keys = example_keys(jax.random.key(1), 8)
    loss = jax.jit(lambda raw, keys: parts.objective(parts.model, params, keys, raw))
    alone = [float(loss(raw[i : i + 1], keys[i : i + 1])[0]) for i in range(8)]
    for n in (2, 8):
        np.testing.assert_allclose(loss(raw[:n], keys[:n]), alone[:n], rtol=1e-5)
        np.testing.assert_allclose(
            parts.objective(parts.model, params, jax.random.key(1), raw[:n]), alone[:n], rtol=1e-5
        )


@dataclasses.dataclass(frozen=True)
class Fixed(sg.TimeLaw):
    """Always the same times, with importance ratios."""

    importance = True
    ratios: tuple[float, ...]

    def draw(self, process, state, key, count):
        t = jnp.arange(count) * 100 + 5
        return Drawn(t, jnp.array(self.ratios), jnp.zeros(count, jnp.int32))

    def density(self, process, t, state=()):
        raise NotImplementedError


@pytest.mark.slow
def test_the_terms_are_the_losses_with_ratio_and_learned_variance():
    """ratio_i (L_i / e^u_i + u_i); the law of times is given the L_i themselves."""
    parts = toy(model={"log_variance": True})
    params = parts.init().params
    params["log_variance"] = jax.tree.map(lambda a: a + 0.1, params["log_variance"])
    raw, keys, ratios = parts.x0(0, 4), example_keys(jax.random.key(1), 4), np.array([0.5, 2.0, 3.0, 0.25])

    def terms(model, ratios):
        objective = dataclasses.replace(parts.objective, times=Fixed(tuple(map(float, ratios))))
        return objective.evaluate(model, params, keys, raw)

    plain = terms(toy().model, np.ones(4))
    np.testing.assert_allclose(plain.terms, plain.losses, rtol=1e-6)
    u = np.asarray(LogVariance().apply(params["log_variance"], parts.model.process.logsnr(jnp.arange(4) * 100 + 5)))
    assert np.ptp(u) > 0.01
    found = terms(parts.model, ratios)
    np.testing.assert_allclose(found.terms, ratios * (plain.losses / np.exp(u) + u), rtol=1e-5)
    np.testing.assert_allclose(found.losses, plain.losses, rtol=1e-6)
    np.testing.assert_allclose(found.drawn.ratio, ratios)


@pytest.mark.slow
def test_a_step_draws_by_its_law_and_the_held_out_loss_by_the_processes_own():
    """So held-out losses can be compared between laws. A law learns from the losses of the step."""
    held_out, steps = [], []
    for law in (sg.Own(), sg.LogNormal(), sg.SecondMoment()):
        parts = toy(objective=sg.Objective(sg.EpsilonMSE(), times=law))
        state = parts.init()
        # The last layer starts at nearly zero, where the loss depends only on the noise.
        state = dataclasses.replace(state, params=jax.tree.map(lambda a: a + 0.1, state.params))
        held_out.append(parts.eval()(state.params))
        state, metrics = parts.step()(state, parts.x0(0))
        steps.append(float(metrics["loss"]))
    assert held_out[0] == held_out[1] == held_out[2]
    assert min(abs(a - b) for a, b in itertools.combinations(steps, 2)) > 1e-3
    losses, seen = state.times
    assert int(seen.sum()) == 8 and int((losses > 0).sum()) == 8


class Numbers(nn.Module):
    """A network whose output is the mean of the augmentation numbers."""

    augment_dim: int = 9

    @nn.compact
    def __call__(self, x, cond, train=False):
        return 0 * nn.Dense(x.shape[-1])(x) + cond.augment.mean(-1, keepdims=True)


@pytest.mark.slow
def test_training_data_are_augmented_and_held_out_data_are_not():
    """The network gets the augmentation numbers in training, and zeros otherwise. Each example has its own key."""
    seen = []

    def prepare(raw, keys, train=True):
        seen.append((train, raw.shape, keys.shape))
        return jnp.asarray(raw), jnp.full((len(raw), 9), 100.0) if train else None

    parts = toy(net=Numbers(), prepare=prepare)
    _, metrics = parts.step()(parts.init(), parts.x0(0))
    assert float(metrics["loss"]) == pytest.approx(1e4, rel=0.1)  # (eps - 100)^2
    assert parts.eval()(parts.init().params) == pytest.approx(1.0, abs=0.2)
    assert seen == [(True, (8, 2), (8,)), (False, (8, 2), (8,))]


@pytest.mark.quick(1)
@pytest.mark.parametrize(("batch", "microbatch", "most"), [(8, 0, 8), (6, 3, 3), (500, 0, 64)])
def test_the_held_out_loss_is_that_of_all_at_once_in_batches_that_fit(batch, microbatch, most):
    """3 does not divide the 512 examples: none is lost or counted twice, and no batch is too large."""
    parts, sizes = counted(toy(batch=batch, microbatch=microbatch, seed=4))
    params = parts.init().params
    found = parts.eval()(params)
    assert sizes == [most]
    _, keys = split_keys(example_keys(jax.random.key(5), 512), 2)
    whole = toy().objective(parts.model, params, keys, parts.data.test[:512])
    assert found == pytest.approx(float(whole.mean()), rel=1e-5)


def test_a_held_out_loss_is_left_out_once_the_run_is_stopped(tmp_path):
    """The evaluation stops between two batches. The checkpoint then has no held-out loss and is not the best."""
    parts, heard = toy(), []
    evaluate = parts.eval()
    progress = lambda done, total: heard.append((done, total))  # noqa: E731
    assert evaluate(parts.init().params, lambda: len(heard) == 3, progress) is None
    assert heard == [(0, 64), (1, 64), (2, 64)]  # of 8 examples each
    seen, console = [], Console(file=io.StringIO())
    parts.fit(
        tmp_path,
        3,
        callback=lambda step, _: seen.append(step),
        stopped=lambda: len(seen) == 2,
        progress=True,
        console=console,
    )
    (row,) = [row for row in MetricsLog.read(tmp_path) if row["step"] == 2 and "loss" in row]
    assert row["steps_per_second"] > 0
    assert not any("held_out_loss" in row for row in MetricsLog.read(tmp_path))
    assert Checkpoints(tmp_path / "checkpoints").best_step() is None


def test_the_bar_shows_work_aside_and_does_not_count_it(monkeypatch):
    now, page = [100.0], io.StringIO()
    monkeypatch.setattr("scoregen.train.log.time.monotonic", lambda: now[0])
    bar = Bar(Console(file=page), "training", 10)
    with bar:
        now[0] += 60.0  # it compiles
        bar.update(1)
        assert bar.rate() == 0 and "left" not in bar.line()
        now[0] += 4.0
        bar.update(3)
        with bar.aside("held-out loss, batch") as progress:
            for i in range(3):
                progress(i, 8)
                now[0] += 30.0
        assert bar.rate() == 0.5 and "0:14 left" in bar.line()
        now[0] += 14.0
        bar.update(10)
    assert page.getvalue().splitlines() == [
        "training 1/10",
        "training 3/10  held-out loss, batch 1/8",
        "training 3/10  held-out loss, batch 2/8",
        "training 10/10  2 s each  in 1:18",
    ]


@pytest.mark.parametrize("name", ["decay", "halflife"])
def test_the_average_is_the_one_asked_for(name):
    """ema_k = d_k ema_{k-1} + (1 - d_k) params_k, with d of the number of steps done before and of the batch."""
    law = {"decay": AVERAGES["decay"](0.5), "halflife": AVERAGES["halflife"](images=12, ramp=0.5)}[name]
    parts = toy(average=law, optimizer=make_optimizer("adam", "constant", 0.1, clip=1.0), batch=4)
    state, step = parts.init(), parts.step()
    expected = jax.tree.map(jnp.array, state.params)
    for k in range(12):  # the ramps end at k = 8 and k = 6
        state, _ = step(state, parts.x0(k))
        decay = min(0.5, (1 + k) / (10 + k)) if name == "decay" else 0.5 ** (4 / max(min(12, 0.5 * 4 * k), 1e-8))
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, expected, state.params)
        assert close(state.ema, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_no_average_is_the_parameters():
    parts = toy()
    for ema in (None, 0.0):
        state = sg.fit(parts.model, parts.data, parts.objective, parts.optimizer, 2, batch=8, ema=ema, progress=False)
        assert same(state.ema, state.params)


@pytest.mark.slow
def test_the_rate_warms_up_from_zero_and_falls_as_the_root_of_the_step():
    """With a constant gradient Adam's step is rate * sign(gradient), so its size is the rate."""
    start = {"w": jnp.array([1.0, -2.0])}
    stays = [(0, 0.0), (1, 0.25), (2, 0.5), (4, 1.0), (9, 1.0)]
    falls = [(0, 0.0), (3, 0.75), (5, 1.0), (6, 1.0), (24, 0.5), (54, 1 / 3)]
    laws = {
        "constant": lambda rate, steps: SCHEDULES["constant"](rate, steps, warmup=4),
        "falling": lambda rate, steps: SCHEDULES["inverse_sqrt"](rate, steps, warmup=4, decay_from=6),
    }
    for name, step, rate in [("constant", *row) for row in stays] + [("falling", *row) for row in falls]:
        optimizer = make_optimizer("adam", laws[name], 1.0)
        state = optimizer.init(start)
        with jax.numpy_dtype_promotion("standard"):
            for _ in range(step + 1):
                update, state = optimizer.update({"w": jnp.array([3.0, -3.0])}, state, start)
        assert np.allclose(update["w"], [-rate, rate], atol=1e-5)

    parts = toy(optimizer=make_optimizer("adam", laws["constant"], 2e-3, clip=1.0))
    begin, step = parts.init(), parts.step()
    before = jax.tree.map(np.array, begin.params)
    state, _ = step(begin, parts.x0(0))
    assert same(state.params, before)
    state, _ = step(state, parts.x0(1))
    assert not same(state.params, before)


def schedule(name, step, steps=100, **options):
    return float(SCHEDULES[name](0.5, steps, **options)(step))


def test_schedules_are_what_they_say():
    assert [schedule("cosine", k, warmup=20, end=0.1) for k in (0, 10, 20, 60, 100, 500)] == pytest.approx(
        [0.0, 0.25, 0.5, 0.5 * 0.55, 0.05, 0.05]
    )
    assert [schedule("linear", k, warmup=20, end=0.1) for k in (0, 10, 20, 60, 100, 500)] == pytest.approx(
        [0.0, 0.25, 0.5, 0.5 * 0.55, 0.05, 0.05]
    )
    assert [schedule("cosine", k) for k in (25, 75)] == pytest.approx([0.25 * (1 + 2**-0.5), 0.25 * (1 - 2**-0.5)])
    assert [schedule("constant", k) for k in (0, 7)] == [0.5, 0.5]
    assert [schedule("inverse_sqrt", k, decay_from=4) for k in (1, 4, 16)] == [0.5, 0.5, 0.25]
    for name in SCHEDULES:
        with pytest.raises(ValueError, match="learning_rate=-1"):
            SCHEDULES[name](-1.0, 100)
        with pytest.raises(ValueError, match="warmup=-1"):
            SCHEDULES[name](1.0, 100, warmup=-1)
    for name in ("cosine", "linear"):
        with pytest.raises(ValueError, match="less than the 100 steps"):
            SCHEDULES[name](1.0, 100, warmup=100)


def old_optimizer(learning_rate, warmup, clip):
    """Adam with a warm-up after a clip, as the first version of this library spelled it."""

    def rate(step):
        done = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum(1.0, done / warmup) if warmup else 1.0
        return learning_rate * warm * 1.0**-0.5

    adam = optax.adam(rate)
    return optax.chain(optax.clip_by_global_norm(clip), adam) if clip else adam


@pytest.mark.slow
@pytest.mark.parametrize(("warmup", "clip"), [(0, 0.0), (3, 0.05)])
def test_adam_with_clip_and_warm_up_is_the_old_one_to_the_bit(warmup, clip):
    constant = lambda rate, steps: SCHEDULES["constant"](rate, steps, warmup=warmup)  # noqa: E731
    states = []
    for optimizer in (old_optimizer(2e-3, warmup, clip), make_optimizer("adam", constant, 2e-3, clip=clip, steps=9)):
        parts = toy(optimizer=optimizer)
        state, step = parts.init(), parts.step()
        for k in range(6):
            state, _ = step(state, parts.x0(k))
        states.append(state)
    assert same(*states)


TREE = {
    "dense": {"kernel": jnp.linspace(-0.3, 0.4, 12).reshape(4, 3), "bias": jnp.zeros(3)},
    "conv": {"kernel": jnp.linspace(-0.1, 0.3, 3 * 3 * 2 * 4).reshape(3, 3, 2, 4)},
    "table": jnp.linspace(0.0, 1.0, 6).reshape(2, 3),
}


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_any_tree_and_goes_down(name):
    """Also with a schedule, a clip and accumulation, jitted, and with parameters that are no matrices."""
    optimizer = make_optimizer(name, "cosine", 0.1, clip=10.0, accumulate=2, steps=200)

    def loss(params):
        return sum(jnp.sum((leaf - 0.5) ** 2) for leaf in jax.tree.leaves(params))

    @jax.jit
    def step(params, state):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = TREE, optimizer.init(TREE)
    for _ in range(100):
        params, state = step(params, state)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(lambda a: (a.shape, a.dtype), TREE)
    assert float(loss(params)) < 0.5 * float(loss(TREE))
    assert all(float(jnp.abs(a - b).max()) > 1e-3 for a, b in zip(*map(jax.tree.leaves, (params, TREE)), strict=True))


def first_update(optimizer, gradient):
    with jax.numpy_dtype_promotion("standard"):
        return optimizer.update(gradient, optimizer.init(TREE), TREE)[0]


@pytest.mark.slow
def test_muon_makes_matrices_orthogonal_and_leaves_the_rest_to_adam():
    rng = np.random.default_rng(0)
    scale = lambda a: 100.0 ** jnp.linspace(0, 1, a.shape[-1])  # noqa: E731 - the outputs have gradients of any size
    gradient = jax.tree.map(lambda a: scale(a)[(None,) * (a.ndim - 1)] * rng.standard_normal(a.shape).astype("f"), TREE)
    update = first_update(OPTIMIZERS["muon"](1e-2), gradient)
    adam = first_update(optax.adam(1e-2, nesterov=True), gradient)

    def spread(leaf):
        singular = np.linalg.svd(np.asarray(leaf).reshape(-1, leaf.shape[-1]), compute_uv=False)
        return singular.max() / singular.min()

    for name in ("dense", "conv"):
        kernel = update[name]["kernel"]
        assert spread(kernel) < 2 < 20 < spread(gradient[name]["kernel"])
        assert np.sqrt(np.mean(np.square(kernel))) == pytest.approx(0.2 * 1e-2, rel=0.3)
    np.testing.assert_allclose(update["dense"]["bias"], adam["dense"]["bias"], rtol=1e-5)
    np.testing.assert_allclose(update["table"], adam["table"], rtol=1e-5)  # an embedding is no kernel


def test_weight_decay_is_decoupled():
    """A gradient of 0 leaves the decay alone: -rate * weight_decay * params."""
    zero = jax.tree.map(jnp.zeros_like, TREE)
    for name, options in (("adamw", {"weight_decay": 0.1}), ("lion", {"weight_decay": 0.1})):
        update = first_update(OPTIMIZERS[name](0.5, **options), zero)
        assert close(update, jax.tree.map(lambda a: -0.05 * a, TREE), rtol=1e-5, atol=1e-8), name
    assert close(first_update(OPTIMIZERS["sgd"](0.5), TREE), jax.tree.map(lambda a: -0.5 * a, TREE), rtol=1e-6)


@pytest.mark.slow
def test_accumulated_gradients_are_the_gradient_of_all_of_them():
    """Two batches of 8 with accumulate=2 make the step of SGD that is their mean; in between nothing moves."""
    parts = toy(optimizer=make_optimizer("sgd", "constant", 0.1, clip=0.0, accumulate=2, steps=2))
    state, step = parts.init(), parts.step()
    start = jax.tree.map(np.array, state.params)
    gradients = []
    for k in range(2):
        noise, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), k))
        _, keys = split_keys(example_keys(noise, 8), 2)
        loss = lambda params, k=k, keys=keys: parts.objective(parts.model, params, keys, parts.x0(k)).mean()  # noqa: E731
        gradients.append(jax.grad(loss)(start))
        state, _ = step(state, parts.x0(k))
        assert k == 1 or same(state.params, start)
    expected = jax.tree.map(lambda p, a, b: p - 0.1 * (a + b) / 2, start, *gradients)
    assert close(state.params, expected, rtol=1e-5, atol=1e-7) and not same(state.params, start)
    assert int(state.step) == 2


def test_options_out_of_range_and_names_that_do_not_exist():
    for options, message in (
        ({"clip": -1.0}, "clip=-1.0"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"optimizer": "adma"}, "no optimizer 'adma': did you mean 'adam'"),
        ({"schedule": "cosin"}, "no schedule 'cosin': did you mean 'cosine'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_optimizer(**options)


@pytest.mark.slow
def test_the_gradient_is_clipped_by_its_global_norm():
    """Adam's first average is 0.1 g: of the norm of g or of the clip, whichever is less, in the direction of g."""
    averages, norms = [], []
    for clip in (0.0, 1e-3):
        parts = toy(optimizer=make_optimizer("adam", "constant", 2e-3, clip=clip))
        state, metrics = parts.step()(parts.init(), parts.x0(0))
        averages.append(optax.tree.get(state.opt_state, "mu"))
        norms.append(float(metrics["grad_norm"]))  # as it is before the clip
    whole, clipped = averages
    assert float(optax.tree.norm(whole)) == pytest.approx(0.1 * norms[0], rel=1e-5)
    assert float(optax.tree.norm(clipped)) == pytest.approx(0.1 * 1e-3, rel=1e-4)
    assert norms[0] == norms[1] > 1e-2
    assert close(clipped, jax.tree.map(lambda a: a * np.float32(1e-3 / norms[0]), whole), rtol=1e-4)


@pytest.mark.quick(1)
@pytest.mark.parametrize(("bad_from", "kept"), [(2, "nothing was saved yet"), (5, "the checkpoint of step 3 is good")])
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_state(tmp_path, bad_from, kept):
    @dataclasses.dataclass(frozen=True, eq=False)
    class Poisoned(sg.data.Dataset):
        def batch(self, seed, step, size):
            return super().batch(seed, step, size) * np.float32(np.nan if step + 1 >= bad_from else 1)

    data = sg.data.mixture(size=64)
    parts = toy(data=Poisoned("poisoned", data.train, data.test))
    message = refused(lambda: parts.fit(tmp_path), "the loss became nan by step", kept)
    assert "--" not in message
    assert Checkpoints(tmp_path / "checkpoints").steps() == [3] * (bad_from > 3)
    assert all(np.isfinite(row.get("loss", 0.0)) for row in MetricsLog.read(tmp_path))
    with pytest.raises(UsageError, match="nothing was saved"):  # without a workdir as well
        parts.fit()


def test_a_batch_is_split_evenly_or_refused():
    check_even(96, 24)
    with pytest.raises(ValueError, match="microbatch=5 does not divide the batch of 12: take one such as 4 or 6"):
        check_even(12, 5)
    parts = toy(microbatch=3)
    with pytest.raises(ValueError, match="microbatch=3 does not divide"):
        parts.step()(parts.init(), parts.x0(0))
