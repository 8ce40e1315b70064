"""The step is the one that the equations say, it is traced once, and a run can be cut anywhere, bit for bit."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from scoregen import train
from scoregen.checkpoint import Checkpoints
from scoregen.config import load
from scoregen.errors import UsageError
from scoregen.experiment import assemble
from scoregen.log import Bar, MetricsLog
from scoregen.nets import LogVariance
from scoregen.times import Drawn, Own, TimeLaw


def toy(**overrides):
    """The smallest run in the plane."""
    config = load("ddpm_toy")
    config.data.mixture.size = 64
    config.net.mlp.update(width=8, depth=1, embedding=8)
    config.train.update(steps=6, batch=8, log_every=1, checkpoint_every=3, ema={"decay": {"rate": 0.9}})
    config.sampler.update(n=3, batch=4, images=8)
    config.eval.samples = 8
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in overrides.items()})
    return config


def digits(**overrides):
    """The smallest run on images, with all that is random: dropout, flips, dequantization."""
    config = load("ddpm_digits")
    config.net.name = "mlp"
    config.net.mlp.update(width=8, depth=1, embedding=8, dropout=0.5)
    config.data.flip = True
    config.scaling.name = "unit"
    config.train.update(steps=6, batch=4, log_every=1, checkpoint_every=3, ema={"decay": {"rate": 0.9}}, warmup=2)
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in overrides.items()})
    return config


def learned(**overrides):
    """The smallest run with all that is learned beside the network: the law of times, and the loss's variance."""
    return toy(
        process__ddpm__steps=3,
        times__name="second_moment",
        times__second_moment__history=2,
        log_variance=True,
        train__batch=16,
        **overrides,
    )


def same(a, b) -> bool:
    """Equal in structure and every bit."""
    equal = lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes()  # noqa: E731
    return jax.tree.structure(a) == jax.tree.structure(b) and all(map(equal, *map(jax.tree.leaves, (a, b))))


def copy(tree):
    return jax.tree.map(jnp.array, tree)


def close(a, b, **tolerance) -> bool:
    return all(np.allclose(x, y, **tolerance) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def fit(config, workdir, stop_at=None, picture=None):
    """Train in `workdir` as the command line does, up to `stop_at`; all objects are made anew."""
    experiment = assemble(config)
    console = Console(file=io.StringIO())
    workdir.mkdir(exist_ok=True)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        found = checkpoints.restore(jax.eval_shape(lambda: train.init_state(experiment)))
        state, begin = found or (train.init_state(experiment), 0)
        bar = Bar(console, "training", config.train.steps, begin)
        stopped = lambda: stop_at is not None and bar.done >= stop_at - 1  # noqa: E731 - one step is in flight
        with MetricsLog(workdir, resume_at=begin) as log, bar:
            return train.fit(experiment, state, checkpoints, log, bar, stopped, picture)


def count_traces(experiment):
    """The experiment with a loss and a network that count how often Python runs them."""
    counts = {"loss": 0, "net": 0}

    class Net:
        init = staticmethod(experiment.net.init)

        @staticmethod
        def apply(*args, **kwargs):
            counts["net"] += 1
            return experiment.net.apply(*args, **kwargs)

    def loss(*args):
        counts["loss"] += 1
        return experiment.loss(*args)

    return dataclasses.replace(experiment, net=Net, loss=loss), counts


def test_every_program_is_traced_once():
    experiment, counts = count_traces(assemble(toy(train__microbatch=4)))
    state, step = train.init_state(experiment), train.make_step(experiment)
    for i in range(3):
        state, _ = step(state, experiment.dataset.batch(0, i, 8))
    assert counts["loss"] == 2  # once for each of the two microbatches, whatever the number of steps

    evaluate = train.make_eval(experiment)
    assert evaluate(state.params) == evaluate(state.params) != evaluate(state.ema)
    assert counts["loss"] == 2 + 1

    sampler, heard = train.make_sampler(experiment), []
    before = counts["net"]
    sampler(state.ema, 3)
    once = counts["net"] - before
    assert 1 <= once <= 2  # the predictor's step and the last denoising are two branches of the one scan
    sampler(state.ema, 10, heard.append)
    sampler(state.params, 4)
    assert counts["net"] - before == once
    assert sorted(heard) == list(range(1, 10))  # 3 levels of 3 batches


def test_a_whole_run_traces_step_eval_and_sample_once(tmp_path):
    """With checkpoints, held-out losses and pictures along the way."""
    config = toy(train__sample_every=2)
    experiment, counts = count_traces(assemble(config))
    sampler, pictures = train.make_sampler(experiment), []
    with Checkpoints(tmp_path / "checkpoints") as checkpoints, MetricsLog(tmp_path, 0) as log:
        state = train.init_state(experiment)
        bar = Bar(Console(file=io.StringIO()), "training", 6)
        picture = lambda step, params: pictures.append((step, sampler(params, 8)))  # noqa: E731
        state = train.fit(experiment, state, checkpoints, log, bar, picture=picture)
    assert counts["loss"] == 2  # the step, and the held-out loss
    assert counts["net"] <= 2 + 2
    assert [step for step, _ in pictures] == [2, 4]
    assert not np.array_equal(pictures[0][1], pictures[1][1])


@pytest.mark.parametrize("make", [toy, digits, pytest.param(learned, marks=pytest.mark.slow)])
def test_a_run_that_is_cut_ends_in_the_same_bits(tmp_path, make):
    straight = fit(make(), tmp_path / "straight")
    first = fit(make(), tmp_path / "cut", stop_at=4)
    cut_at = int(first.step)
    assert 3 <= cut_at < 6
    second = fit(make(), tmp_path / "cut")
    assert int(straight.step) == int(second.step) == 6
    for part in ("params", "ema", "opt_state", "times"):
        assert same(getattr(straight, part), getattr(second, part)), part
    assert not same(straight.params, straight.ema)
    if make is learned:  # the law was no longer even when the run was cut
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


def test_the_loss_is_the_hand_written_one():
    """Ho et al. 2020, eq. 14, spelled out: x = sqrt(abar) x0 + sqrt(1 - abar) eps, and the mean of (eps - net)^2."""
    config = toy(train__batch=5, seed=3)
    experiment = assemble(config)
    state = dataclasses.replace(train.init_state(experiment), step=jnp.int32(7))
    raw = experiment.dataset.batch(3, 7, 5)

    noise, _ = jax.random.split(jax.random.fold_in(jax.random.key(3), 7))
    losses = []
    for i in range(5):
        _, time, eps_key, _ = jax.random.split(jax.random.fold_in(noise, i), 4)
        t = int(1000 * jax.random.uniform(time, ()))
        eps = np.asarray(jax.random.normal(eps_key, (2,)), np.float64)
        betas = np.linspace(1e-4, 0.02, 1000)
        abar = np.prod(1 - betas[: t + 1])
        x = np.sqrt(abar) * raw[i] + np.sqrt(1 - abar) * eps
        c = np.log(abar / (1 - abar))
        net = experiment.net.apply(state.params["net"], x[None].astype(np.float32), np.float32([c]))
        losses.append(np.mean((eps - np.asarray(net)[0]) ** 2))
    _, metrics = train.make_step(experiment)(state, raw)
    assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.parametrize("make", [toy, learned])
def test_microbatches_make_the_same_step(make):
    states, losses = [], []
    for microbatch in (0, 2):
        # A gradient that is clipped and a ramp that is on: what follows the sum must follow it once.
        experiment = assemble(make(train__microbatch=microbatch, train__clip=0.1, train__learning_rate=0.01))
        raw = experiment.dataset.batch(0, 0, experiment.config.train.batch)
        state, metrics = train.make_step(experiment)(train.init_state(experiment), raw)
        states.append(jax.tree.map(np.asarray, state))
        losses.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    for state, loss in zip(states[1:], losses[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-5)
        moments = [optax.tree.get(s.opt_state, "mu") for s in (states[0], state)]
        assert close(*moments, rtol=1e-4, atol=1e-7)
        assert close(states[0].params, state.params, atol=2e-5)
        assert close(states[0].times, state.times, rtol=1e-5)
        assert make is toy or int(state.times[1].sum()) == 16


def test_noise_depends_on_the_example_not_on_the_batch():
    """The first two of eight examples get the loss that they get alone."""
    experiment = assemble(toy())
    params = train.init_state(experiment).params
    raw = experiment.dataset.batch(0, 0, 8)
    keys = train.example_keys(jax.random.key(1), 8)
    loss = jax.jit(lambda raw, keys: train.mean_loss(experiment, Own(), (), params, raw, keys, None)[0])
    alone = [float(loss(raw[i : i + 1], keys[i : i + 1])) for i in range(8)]
    for n in (2, 8):
        together = loss(raw[:n], train.example_keys(jax.random.key(1), n))
        assert float(together) == pytest.approx(np.mean(alone[:n]), rel=1e-5)


@dataclasses.dataclass(frozen=True)
class Fixed(TimeLaw):
    """Always the same times, with weights."""

    weights: tuple[float, ...]

    def __call__(self, process, known, key, count):
        t = jnp.arange(count) * 100 + 5
        return Drawn(t, jnp.array(self.weights), jnp.zeros(count, jnp.int32))


def test_the_mean_is_that_of_the_weighted_and_settled_losses():
    """sum_i w_i (L_i / e^u_i + u_i) / B; what the law is told are the L_i themselves."""
    even, weights = Fixed((1.0, 1.0, 1.0, 1.0)), np.array([0.5, 2.0, 3.0, 0.25])
    experiment = assemble(toy(log_variance=True))
    params = train.init_state(experiment).params
    params["log_variance"] = jax.tree.map(lambda a: a + 0.1, params["log_variance"])
    raw, keys = experiment.dataset.batch(0, 0, 4), train.example_keys(jax.random.key(1), 4)
    plain, (_, told) = train.mean_loss(assemble(toy()), even, (), params, raw, keys, None)
    assert float(plain) == pytest.approx(float(np.mean(told)), rel=1e-6)
    u = LogVariance().apply(params["log_variance"], experiment.process.logsnr(jnp.arange(4) * 100 + 5))
    assert np.ptp(u) > 0.01
    law = Fixed(tuple(weights))
    loss, (drawn, losses) = train.mean_loss(experiment, law, (), params, raw, keys, None)
    assert float(loss) == pytest.approx(
        np.mean(weights * (np.asarray(told) / np.exp(np.asarray(u)) + np.asarray(u))), rel=1e-5
    )
    assert np.allclose(losses, told, rtol=1e-6) and np.allclose(drawn.weight, weights)


def test_a_step_draws_by_its_law_and_the_held_out_loss_by_the_processes_own():
    """So the second compares between laws; and a law is told of the losses."""
    held_out, steps = [], []
    for name in ("own", "lognormal", "second_moment"):
        experiment = assemble(toy(times__name=name))
        state = train.init_state(experiment)
        held_out.append(train.make_eval(experiment)(state.params))
        state, metrics = train.make_step(experiment)(state, experiment.dataset.batch(0, 0, 8))
        steps.append(float(metrics["loss"]))
    assert held_out[0] == held_out[1] == held_out[2]
    assert len(set(steps)) == 3
    losses, seen = state.times
    assert int(seen.sum()) == 8 and int((losses > 0).sum()) == 8


@pytest.mark.parametrize(("batch", "microbatch", "most"), [(8, 0, 8), (6, 3, 3), (500, 0, 64)])
def test_the_held_out_loss_is_that_of_all_at_once_in_batches_that_fit(batch, microbatch, most):
    """512 examples, of which 3 is no divisor: none is lost, none counted twice, and none is too many at a time."""
    sizes = set()

    def loss(process, predict, noised, key):
        sizes.add(len(noised.x))
        return experiment.loss(process, predict, noised, key)

    experiment = assemble(toy(train__batch=batch, train__microbatch=microbatch, seed=4))
    params = train.init_state(experiment).params
    found = train.make_eval(dataclasses.replace(experiment, loss=loss))(params)
    assert sizes == {most}
    keys = train.example_keys(jax.random.key(5), 512)
    whole = train.mean_loss(experiment, Own(), (), params, experiment.dataset.test[:512], keys, None)[0]
    assert found == pytest.approx(float(whole), rel=1e-5)


def test_a_held_out_loss_is_left_out_once_it_is_asked_to_stop(tmp_path):
    """Between two batches; what is saved then has no loss, and is not the best."""
    experiment, heard = assemble(toy(train__steps=3)), []
    evaluate = train.make_eval(experiment)
    params = train.init_state(experiment).params
    told = lambda done, total: heard.append((done, total))  # noqa: E731
    assert evaluate(params, lambda: len(heard) == 3, told) is None
    assert heard == [(0, 64), (1, 64), (2, 64)]  # of 8 examples each
    fit(toy(), tmp_path, stop_at=2)
    (row,) = [row for row in MetricsLog.read(tmp_path) if row["step"] == 2 and "loss" in row]
    assert row["steps_per_second"] > 0
    assert not any("held_out_loss" in row for row in MetricsLog.read(tmp_path))
    assert Checkpoints(tmp_path / "checkpoints").best_step() is None


def test_the_bar_tells_of_work_aside_and_does_not_count_it(monkeypatch):
    now, page = [100.0], io.StringIO()
    monkeypatch.setattr("scoregen.log.time.monotonic", lambda: now[0])
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
    options = {"train__ema__name": name, "train__ema__decay__rate": 0.5, "train__ema__halflife__images": 12}
    experiment = assemble(toy(**options, train__ema__halflife__ramp=0.5, train__learning_rate=0.1, train__batch=4))
    state, step = train.init_state(experiment), train.make_step(experiment)
    expected = copy(state.params)
    for k in range(12):  # the ramps end at k = 8 and k = 6
        state, _ = step(state, experiment.dataset.batch(0, k, 4))
        decay = min(0.5, (1 + k) / (10 + k)) if name == "decay" else 0.5 ** (4 / max(min(12, 0.5 * 4 * k), 1e-8))
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, expected, state.params)
        assert close(state.ema, expected, rtol=1e-4, atol=1e-6)


def test_no_average_is_the_parameters():
    experiment = assemble(toy(train__ema__name="none"))
    state, _ = train.make_step(experiment)(train.init_state(experiment), experiment.dataset.batch(0, 0, 8))
    assert same(state.ema, state.params)


def test_the_rate_warms_up_from_zero_and_falls_as_the_root_of_the_step():
    """With a constant gradient Adam's step is rate * sign(gradient), so its size tells the rate."""
    start = {"w": jnp.array([1.0, -2.0])}
    stays = [(0, 0.0), (1, 0.25), (2, 0.5), (4, 1.0), (9, 1.0)]
    falls = [(0, 0.0), (3, 0.75), (5, 1.0), (6, 1.0), (24, 0.5), (54, 1 / 3)]
    for decay_from, step, rate in [(0, *row) for row in stays] + [(6, *row) for row in falls]:
        options = {"train__decay_from": decay_from, "train__learning_rate": 1.0, "train__clip": 0.0}
        optimizer = train.make_optimizer(toy(train__warmup=4, **options).train)
        state = optimizer.init(start)
        with jax.numpy_dtype_promotion("standard"):
            for _ in range(step + 1):
                update, state = optimizer.update({"w": jnp.array([3.0, -3.0])}, state, start)
        assert np.allclose(update["w"], [-rate, rate], atol=1e-5)

    experiment = assemble(toy(train__warmup=4))
    begin, step = train.init_state(experiment), train.make_step(experiment)
    before = copy(begin.params)
    state, _ = step(begin, experiment.dataset.batch(0, 0, 8))
    assert same(state.params, before)
    state, _ = step(state, experiment.dataset.batch(0, 1, 8))
    assert not same(state.params, before)


def test_the_gradient_is_clipped_by_its_global_norm():
    """Adam's first average is 0.1 g: of the norm of g or of the clip, whichever is less, in the direction of g."""
    averages, norms = [], []
    for clip in (0.0, 1e-3):
        experiment = assemble(toy(train__clip=clip))
        state, metrics = train.make_step(experiment)(train.init_state(experiment), experiment.dataset.batch(0, 0, 8))
        averages.append(optax.tree.get(state.opt_state, "mu"))
        norms.append(float(metrics["grad_norm"]))  # as it is before the clip
    whole, clipped = averages
    assert float(optax.tree.norm(whole)) == pytest.approx(0.1 * norms[0], rel=1e-5)
    assert float(optax.tree.norm(clipped)) == pytest.approx(0.1 * 1e-3, rel=1e-4)
    assert norms[0] == norms[1] > 1e-2
    assert close(clipped, jax.tree.map(lambda a: a * np.float32(1e-3 / norms[0]), whole), rtol=1e-4)


def test_a_sample_depends_on_the_seed_and_its_number_alone():
    """Not on the batch it is drawn in, nor on how many are drawn."""
    drawn = {}
    for seed, batch, count in ((0, 4, 8), (0, 3, 8), (0, 8, 5), (1, 4, 8)):
        experiment = assemble(toy(seed=seed, sampler__batch=batch))
        params = train.init_state(assemble(toy())).params
        drawn[seed, batch] = train.make_sampler(experiment)(params, count)
        assert drawn[seed, batch].shape == (count, 2)
    assert np.allclose(drawn[0, 4], drawn[0, 3], rtol=1e-4, atol=1e-4)
    assert np.allclose(drawn[0, 4][:5], drawn[0, 8], rtol=1e-4, atol=1e-4)
    assert not np.allclose(drawn[0, 4], drawn[1, 4], rtol=0.1)
    assert len(np.unique(drawn[0, 4][:, 0])) == 8


@pytest.mark.parametrize(("bad_from", "kept"), [(2, "nothing was saved yet"), (5, "the checkpoint of step 3 is good")])
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_state(tmp_path, bad_from, kept):
    experiment = assemble(toy())
    batch = experiment.dataset.batch

    class Poisoned:
        def __getattr__(self, name):
            return getattr(experiment.dataset, name)

        def batch(self, seed, step, size):
            return batch(seed, step, size) * np.float32(np.nan if step + 1 >= bad_from else 1)

    poisoned = dataclasses.replace(experiment, dataset=Poisoned())
    bar = Bar(Console(file=io.StringIO()), "training", 6)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints, MetricsLog(tmp_path, 0) as log:
        state = train.init_state(experiment)
        with pytest.raises(UsageError) as caught:
            train.fit(poisoned, state, checkpoints, log, bar)
    message = str(caught.value)
    assert "the loss became nan by step" in message and kept in message and "\n" not in message
    assert Checkpoints(tmp_path / "checkpoints").steps() == [3] * (bad_from > 3)
    assert all(np.isfinite(row.get("loss", 0.0)) for row in MetricsLog.read(tmp_path))
