"""Labels and controls in training, sampling and the likelihood of a run."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

import scoregen as sg
from scoregen.app import report
from scoregen.app.build import build
from scoregen.app.config import load
from scoregen.app.evaluate import likelihoods
from scoregen.data import SOURCES, Dataset, in_turns
from scoregen.nets import MLP, NETS
from scoregen.random import example_keys, split_keys


class Told(nn.Module):
    """A small network that passes its labels to `note`."""

    note: Callable[[Any], None]
    num_classes: int = 8

    @nn.compact
    def __call__(self, x, cond, train=False):
        jax.debug.callback(self.note, cond.label)
        return MLP(width=8, depth=1, embedding=8, num_classes=self.num_classes)(x, cond, train)


def told_net():
    """A `Told`, and the list of its labels, one array for each call."""
    labels: list[np.ndarray] = []
    return Told(lambda label: labels.append(np.asarray(label))), labels


def alive(params, seed=3):
    """Parameters all of unit order, so that a label makes a difference."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [0.5 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def parameters(parts, seed=3):
    """`alive` parameters of a run's model."""
    return alive(parts.model.init(jax.random.key(0), (1, *parts.dataset.shape)), seed)


# --- training


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_a_label_is_added_to_the_embedding_of_the_noise(name):
    """Adding a class's row to the bias of that layer has the same effect. The table also has a row for no label."""
    if name == "mlp":
        options: dict[str, Any] = {"width": 8, "depth": 1, "embedding": 8}
    else:
        options = {"channels": 4, "multipliers": (1,), "blocks": 1, "attention": (), "dropout": 0.0, "groups": 2}
    net, plain = NETS[name](**options, num_classes=3), NETS[name](**options)
    shape = (3, 2) if name == "mlp" else (3, 4, 4, 1)
    x, c, labels = jax.random.normal(jax.random.key(0), shape), jnp.array([-1.0, 0.5, 2.0]), jnp.array([2, 0, 3])
    params = net.init(jax.random.key(1), x, sg.Cond(c, labels))
    params = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(2), a.shape), params)
    ours = net.apply(params, x, sg.Cond(c, labels))
    bare = {"params": {key: value for key, value in params["params"].items() if key != "label"}}
    table, layer = params["params"]["label"]["embedding"], {"mlp": "time", "unet": "time2"}[name]
    assert table.shape[0] == 4
    for i, label in enumerate(np.asarray(labels)):
        moved = jax.tree.map(jnp.array, bare)
        moved["params"][layer]["bias"] += table[label]
        np.testing.assert_allclose(ours[i], plain.apply(moved, x, sg.Cond(c))[i], rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(ours - plain.apply(bare, x, sg.Cond(c)))).max() > 0.01


@pytest.mark.slow
def test_labels_come_with_their_examples(tmp_path):
    """In every step of `fit` the network gets the labels of its examples, here the nearest modes."""
    net, labels = told_net()
    parts = small.toy(net=net)
    parts.fit(steps=3)
    jax.effects_barrier()
    batches = [label for label in labels if len(label) == 8]
    ring = np.stack([parts.data.test[parts.data.test_labels == k].mean(0) for k in range(8)])
    assert len(batches) >= 3
    for step in range(3):
        nearest = np.linalg.norm(parts.x0(step)[:, None] - ring[None], axis=-1).argmin(1)
        assert nearest.tolist() in [label.tolist() for label in batches]


def dropped(parts, labels, keys):
    """The labels that the objective gives the network."""
    net, seen = told_net()
    model = dataclasses.replace(parts.model, net=net)
    params = model.init(jax.random.key(0), (1, 2))
    seen.clear()
    parts.objective.evaluate(model, params, keys, jnp.zeros((len(labels), 2)), sg.Cond(label=labels))
    jax.effects_barrier()
    return seen[-1]


def labelled(label_dropout, **parts):
    objective = sg.Objective(sg.EpsilonMSE(), label_dropout=label_dropout)
    return small.toy(**({"net": MLP(8, 1, 8, num_classes=8), "objective": objective} | parts))


@pytest.mark.slow
def test_labels_are_dropped_as_often_as_said():
    """The key of each example decides; the label 8 stands for none."""
    labels, keys = jnp.arange(4000) % 8, example_keys(jax.random.key(0), 4000)
    given = dropped(labelled(0.3), labels, keys)
    gone = given == 8
    assert abs(gone.mean() - 0.3) < 5 * math.sqrt(0.21 / 4000)
    np.testing.assert_array_equal(given[~gone], np.asarray(labels)[~gone])
    np.testing.assert_array_equal(dropped(labelled(0.3), labels[5:9], keys[5:9]), given[5:9])


@pytest.mark.slow
@pytest.mark.parametrize("microbatch", [0, 4])
def test_a_step_gives_the_network_the_labels_but_for_those_dropped(microbatch):
    net, seen = told_net()
    parts = labelled(0.4, net=net, microbatch=microbatch)
    state = dataclasses.replace(parts.init(), step=jnp.int32(3))
    jax.effects_barrier()
    seen.clear()
    labels = parts.cond(3).label
    parts.step()(state, parts.x0(3), parts.cond(3))
    jax.effects_barrier()
    keys = example_keys(jax.random.split(jax.random.fold_in(jax.random.key(0), 3))[0], 8)
    want = dropped(parts, jnp.asarray(labels), split_keys(keys, 2)[1])
    assert set(want[want != labels]) == {8} and (want == labels).any()
    size = microbatch or 8
    got = [label for label in seen if len(label) == size]
    assert sorted(map(tuple, got)) == sorted(tuple(want[i : i + size]) for i in range(0, 8, size))


@pytest.mark.slow
def test_a_run_with_labels_is_resumed_bit_for_bit(tmp_path):
    """And with labels dropped more often it is another run."""
    whole = labelled(0.1).fit(tmp_path / "whole")
    labelled(0.1).fit(tmp_path / "cut", steps=2)
    assert small.same(labelled(0.1).fit(tmp_path / "cut"), whole)
    assert not small.same(labelled(0.9).fit(tmp_path / "other"), whole)


@pytest.mark.slow
def test_labels_change_nothing_else_of_a_step():
    """Times and noise have the same keys as without labels: with no class given, the loss is the same."""
    plain, with_labels = small.toy(), labelled(0.0)
    params = alive(with_labels.model.init(jax.random.key(0), (1, 2)))
    inner = params["net"]["params"]
    bare = {"net": {"params": {k: v for k, v in inner.items() if k != "label"}}}
    time = {"kernel": inner["time"]["kernel"], "bias": inner["time"]["bias"] + inner["label"]["embedding"][8]}
    bare["net"]["params"]["time"] = time
    raw, keys = plain.x0(0), example_keys(jax.random.key(1), 8)

    def loss(parts, params, labels):
        cond = None if labels is None else sg.Cond(label=labels)
        return float(parts.objective(parts.model, params, keys, raw, cond).mean())

    ours, without = loss(with_labels, params, jnp.full(8, 8)), loss(plain, bare, None)
    np.testing.assert_allclose(ours, without, rtol=1e-5)
    np.testing.assert_allclose(loss(with_labels, params, None), ours, rtol=1e-6)
    assert abs(loss(with_labels, params, jnp.arange(8)) - ours) > 1e-3


# --- a run with labels


def toy(**overrides):
    config = load("ddpm_toy")
    config.data.mixture.size = 64
    config.labels = True
    config.net.mlp.update(width=8, depth=1, embedding=8)
    config.train.update(steps=6, batch=8, log_every=1, checkpoint_every=3, ema={"decay": {"rate": 0.9}})
    config.sampler.update(n=3, batch=4, images=8)
    config.eval.samples = 8
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in overrides.items()})
    return config


def with_told(parts):
    """The same run with a `Told`, the list of its labels, and its parameters."""
    net, labels = told_net()
    model = dataclasses.replace(parts.model, net=net)
    sampling = dataclasses.replace(
        parts.sampling,
        model=model,
        process=model.process if parts.sampling.process is parts.model.process else parts.sampling.process,
    )
    parts = dataclasses.replace(parts, model=model, sampling=sampling)
    params = parameters(parts)
    jax.effects_barrier()
    labels.clear()
    return parts, labels, params


@pytest.mark.slow
def test_the_same_draw_whatever_the_batch():
    """Sample i has its own class and noise."""
    drawn = {}
    for size in (4, 7):
        parts = build(toy(sampler__batch=size, sampler__guidance=2.0))
        drawn[size] = parts.sampling(parameters(parts), 10)
    np.testing.assert_allclose(drawn[4], drawn[7], rtol=1e-5, atol=1e-6)
    assert (build(toy(sampler__label=3, eval__at_end=False)).sampling.cond_of(np.arange(5)).label == 3).all()
    parts = build(toy())
    labels = parts.dataset.train_labels
    in_turn = np.resize(labels[in_turns(labels)], 200)
    np.testing.assert_array_equal(parts.sampling.cond_of(np.arange(200)).label, in_turn)


@pytest.mark.slow
def test_scale_1_is_the_conditional_model_bit_for_bit():
    """Scale 1 does not even trace the other network; scale 0 is the network without labels; other scales run both."""
    drawn, told = {}, {}
    for scale in (0.0, 1.0, 2.0):
        parts, told[scale], params = with_told(build(toy(sampler__guidance=scale)))
        drawn[scale] = parts.sampling(params, 4)
        jax.effects_barrier()
    assert all((labels < 8).all() for labels in told[1.0]) and all((labels == 8).all() for labels in told[0.0])
    assert len(told[2.0]) == 2 * len(told[1.0])

    keys, labels = example_keys(jax.random.key(2), 4), parts.sampling.cond_of(np.arange(4)).label
    for cond, scale in ((sg.Cond(label=jnp.asarray(labels)), 1.0), (None, 0.0)):

        @jax.jit
        def walk(params, keys, cond=cond):
            return parts.sampling.sampler(parts.model.denoiser(params, cond), keys, (4, 2))

        np.testing.assert_array_equal(walk(params, keys), drawn[scale])
    assert np.abs(drawn[1.0] - drawn[0.0]).max() > 1e-3


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"data__name": "swissroll"}, ["'swissroll' have no labels", "--config.labels=false"]),
        ({"labels": False, "sampler__guidance": 2.0}, ["config.sampler.guidance=2.0", "--config.labels=true"]),
        ({"labels": False, "sampler__label": 0}, ["config.sampler.label=0", "--config.labels=true"]),
        ({"sampler__label": 8}, ["config.sampler.label=8", "0 to 7"]),
        ({"sampler__label": -2}, ["config.sampler.label=-2"]),
        ({"label_dropout": 1.0}, ["config.label_dropout=1.0"]),
        ({"label_dropout": -0.1}, ["config.label_dropout=-0.1"]),
        ({"label_dropout": 0.0, "sampler__guidance": 2.0}, ["guidance=2.0", "--config.label_dropout=0.1"]),
        ({"sampler__guidance": math.inf}, ["config.sampler.guidance=inf"]),
        ({"sampler__control__name": "inpaint"}, ["for images", "--config.sampler.control.name=none"]),
        ({"sampler__x0__name": "clip"}, ["only images of bytes have a range", "x0.name=free"]),
        ({"sampler__corrector__name": "mala", "energy": True, "sampler__x0__name": "clip"}, ["'mala'", "x0.name=free"]),
        ({"sampler__corrector__name": "mala", "energy": True, "sampler__control__name": "inpaint"}, ["'mala'", "none"]),
    ],
)  # fmt: skip
def test_nonsense_with_labels_is_refused(overrides, parts):
    message = refusals(lambda: build(toy(**overrides)))
    assert not [part for part in parts if part not in message], message


def refusals(call):
    with pytest.raises(sg.UsageError) as caught:
        call()
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bound", "ode"])
@pytest.mark.parametrize(("label", "want"), [(-1, None), (3, [3, 3, 3])])
def test_a_likelihood_is_of_the_class_that_an_example_has_or_of_the_chosen_one(label, want, kind):
    config = toy(sampler__label=label, eval__at_end=False, eval__likelihood__name=kind)
    config.eval.likelihood.update(examples=3, batch=3)
    config.eval.likelihood.ode.update(rtol=0.1, atol=0.1)
    parts, told, params = with_told(build(config))
    found, count = likelihoods(parts, jax.tree.map(lambda a: 0.1 * a, params))
    jax.effects_barrier()
    assert count == 3 and found[0].name == kind
    assert set(np.concatenate([np.ravel(a) for a in told])) == set(want or parts.dataset.test_labels[:3].tolist())


@pytest.mark.slow
def test_guidance_moves_the_samples_to_the_class_that_is_chosen():
    """A trained network, on the ring of eight Gaussians: with its label a sample is nearest to that class's middle."""
    parts = labelled(0.1, net=MLP(num_classes=8), data=sg.data.mixture(), batch=256, average=sg.train.Decay(0.99))
    params = parts.fit(steps=3000, log_every=1000).ema
    data, right, spread = parts.data, {}, {}
    middles = np.stack([data.test[data.test_labels == k].mean(0) for k in range(8)])
    labels = np.arange(800) % 8
    for scale in (0.0, 1.0, 3.0):
        guide = sg.ClassifierFree(parts.model.denoiser(params), scale)
        denoiser = guide(parts.model.denoiser(params, sg.Cond(label=jnp.asarray(labels))))
        draws = np.asarray(sg.Sampler(sg.Ancestral(), n=50)(denoiser, jax.random.key(2), (800, 2)))
        off = np.linalg.norm(draws[:, None] - middles[None], axis=-1)
        right[scale], spread[scale] = (off.argmin(1) == labels).mean(), np.median(off.min(1))
    assert right[0.0] < 0.2 and right[1.0] > 0.95 and right[3.0] > 0.99, right
    assert spread[3.0] < spread[0.0]


# --- a run that completes images


def tiny(**overrides):
    """Digits with the smallest network."""
    config = load("ddpm_digits")
    config.net.name = "mlp"
    config.net.mlp.update(width=8, depth=1, embedding=8)
    config.sampler.update(n=3, batch=8, images=5)
    config.sampler.control.name = "inpaint"
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in overrides.items()})
    return config


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"sampler__control__name": "colorize"}, ["no colours", "--config.sampler.control.name=inpaint"]),
        ({"sampler__control__inpaint__hidden": "edge"}, ["inpaint", "hidden='edge'"]),
        ({"sampler__control__inpaint__method": "moments", "sampler__control__inpaint__max_measured": 31},
         ["32 measured", "inpaint.method=pigdm", "inpaint.max_measured=32"]),
        ({"process__name": "flow", "target": "v", "sampler__n": 3, "sampler__control__inpaint__method": "dps"},
         ["alpha = 0", "t_max=0.999", "inpaint.method=replace"]),
    ],
)  # fmt: skip
def test_nonsense_with_control_is_refused(overrides, parts):
    message = refusals(lambda: build(tiny(**overrides), mode="sample"))
    assert not [part for part in parts if part not in message], message


@pytest.mark.slow
def test_each_sample_completes_the_held_out_image_of_its_number():
    """Whatever the size of the batch. The visible half of the image is kept, up to rounding."""
    drawn = {}
    for size in (4, 7):
        parts = build(tiny(sampler__batch=size), mode="sample")
        drawn[size] = parts.sampling(parameters(parts), 6)
    np.testing.assert_allclose(drawn[4], drawn[7], rtol=1e-5, atol=1e-5)
    clean = parts.dataset.test[:6].astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(drawn[4][:, :, :4], clean[:, :, :4], atol=1e-6)
    assert np.abs(drawn[4][:, :, 4:] - clean[:, :, 4:]).max() > 0.1
    own = build(tiny(labels=True), mode="sample")
    np.testing.assert_array_equal(own.sampling.cond_of(np.arange(5)).label, own.dataset.test_labels[:5])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["replace", "dps"])
def test_a_clip_and_a_control(method):
    """Measured values are put in after the dynamic threshold and stay exact. A gradient is taken before a clip."""
    x0 = {"replace": "dynamic", "dps": "clip"}[method]
    parts = build(tiny(sampler__x0__name=x0, sampler__control__inpaint__method=method), mode="sample")
    sampling, params = parts.sampling, parameters(parts)
    clean = sampling.clean_of(np.arange(3))
    x, t = 2 * jax.random.normal(jax.random.key(0), clean.shape), jnp.array([300, 500, 700])
    found = sampling.denoiser(params, None, clean)(x, t).x0
    inner, outer = sampling.hold_x0, sampling.control(clean)
    if method == "dps":
        inner, outer = outer, inner
    plain = parts.model.denoiser(params)
    np.testing.assert_allclose(found, outer(inner(plain))(x, t).x0, rtol=1e-5)
    assert np.abs(np.asarray(plain(x, t).x0)).max() > 1.5  # the range counts
    if method == "replace":
        np.testing.assert_array_equal(found[:, :, :4], clean[:, :, :4])
    else:
        assert np.abs(np.asarray(found)).max() <= 1


@pytest.mark.slow
def test_colours_are_completed_and_drawn(tmp_path, monkeypatch):
    """Three rows: the images, their grey, and samples of the same grey."""
    images = np.random.default_rng(0).integers(256, size=(20, 4, 4, 3), dtype=np.uint8)
    monkeypatch.setitem(SOURCES, "digits", lambda: Dataset("colours", images[:12], images[12:]))
    config = tiny(sampler__control__name="colorize", eval__samples=8, eval__at_end=False, sampler__x0__name="free")
    parts = build(config, mode="sample")
    samples = parts.sampling(parameters(parts), 5)
    clean = images[12:17].astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(samples.mean(-1), clean.mean(-1), atol=1e-2)
    lines = []

    def sheet(images, side, columns):
        lines.append((images, columns))
        return real(images, side, columns)

    real = report.sheet
    monkeypatch.setattr(report, "sheet", sheet)
    report.save_completed(tmp_path / "picture.png", parts.sampling, np.arange(len(samples)), samples)
    (held_out, seen, completed), columns = zip(*lines, strict=True)
    assert columns == (5, 5, 5)
    np.testing.assert_array_equal(held_out, images[12:17])
    np.testing.assert_allclose(seen, np.repeat(images[12:17].mean(-1, keepdims=True), 3, -1), atol=0.51)
    np.testing.assert_array_equal(completed, parts.scaling.to_bytes(samples))


def test_control_is_for_sampling(capsys):
    from scoregen.app.main import run

    assert run(["--config=ddpm_digits", "--mode=train", "--config.sampler.control.name=inpaint"]) == 2
    assert "has no effect in `scoregen train`: sample uses it" in " ".join(capsys.readouterr().err.split())
