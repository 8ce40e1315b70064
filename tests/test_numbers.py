"""Every option that is a number refuses all other values, and values that are out of range, by its name."""

import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scoregen as sg
from scoregen.data import SOURCES, reads_files
from scoregen.errors import UsageError, check_fields
from scoregen.guidance import CONTROLS
from scoregen.likelihood import LIKELIHOODS
from scoregen.losses import LOSSES, WEIGHTINGS
from scoregen.metrics import sliced_wasserstein
from scoregen.nets import NETS, auto
from scoregen.process import PROCESSES
from scoregen.samplers import CORRECTORS, GRIDS, STEPS
from scoregen.times import TIMES
from scoregen.train import AVERAGES, OPTIMIZERS, SCHEDULES, Checkpoints, check_even, make_eval, make_optimizer

TABLES = (PROCESSES, TIMES, LOSSES, STEPS, CORRECTORS, CONTROLS, AVERAGES, OPTIMIZERS, SCHEDULES, LIKELIHOODS, SOURCES)
ELSEWHERE = {  # these are numbers, or they have their own messages
    *("halflife-images", "cifar10-size", "fashion_mnist-size", "ncsnpp-filter", "folder-size", "folder-background"),
    *("cifar100-size", "hf-size", "hf-background"),
    *("refinenet-num_classes", "refinenet_v2-num_classes"),
}


INFINITE = {"edm-low", "edm-high", "halflife-ramp"}  # S_min and S_max of the paper, and no ramp


def integers(make):
    """The names of the parameters whose default is an integer, or a tuple of integers, or that are annotated so."""
    for name, parameter in inspect.signature(make).parameters.items():
        default = parameter.default
        if isinstance(default, tuple):
            yield from (name for _ in default[:1] if type(default[0]) is int)
        elif type(default) is int or parameter.annotation in (int, "int"):
            yield name


def reals(make):
    """The names of the parameters whose default is a floating-point number, or that are annotated so."""
    for name, parameter in inspect.signature(make).parameters.items():
        if type(parameter.default) is float or parameter.annotation in (float, "float"):
            yield name


MADE = [
    (f"{key}-{name}", make, name)
    for table in TABLES
    for key, make in table.items()
    for name in integers(make)
    if f"{key}-{name}" not in ELSEWHERE and (name not in ("seed", "steps") or table in (PROCESSES, CORRECTORS))
]
FIELDS = [
    pytest.param(net, name, id=f"{key}-{name}")
    for key, net in NETS.items()
    for name in integers(net)
    if f"{key}-{name}" not in ELSEWHERE
]


@pytest.mark.parametrize("value", [2.5, True, "3", None, -1])
@pytest.mark.parametrize(("make", "name"), [case[1:] for case in MADE], ids=[case[0] for case in MADE])
def test_an_option_that_counts_is_an_integer(make, name, value):
    with pytest.raises((TypeError, ValueError, UsageError), match=rf"{name}={value!r}"):
        make(**required(make) | {name: value})


def required(make):
    """The parameters of a part that have no default."""
    if make in SOURCES.values() and reads_files(make):
        return {"dir": "."}
    if make in SCHEDULES.values():
        return {"learning_rate": 1.0, "steps": 10}
    return {"learning_rate": 1e-3} if make in OPTIMIZERS.values() else {}


REAL = [
    pytest.param(key, make, name, id=f"{key}-{name}")
    for table in (*TABLES, WEIGHTINGS, GRIDS)
    for key, make in table.items()
    for name in reals(make)
]


@pytest.mark.parametrize("value", ["a", None, True, math.nan, math.inf])
@pytest.mark.parametrize(("key", "make", "name"), REAL)
def test_an_option_that_measures_is_a_finite_number(key, make, name, value):
    if value == math.inf and f"{key}-{name}" in INFINITE:
        assert getattr(make(**{name: value}), name) == value
        return
    with pytest.raises((TypeError, ValueError, UsageError), match=rf"{name}={value!r}.* needed"):
        make(**required(make) | {name: value})


def test_a_number_may_be_an_array_or_a_traced_value():
    for number in (np.float32(0.25), jnp.float32(0.25)):
        assert float(sg.VP(data_std=number).data_std) == 0.25
    assert float(jax.jit(lambda std: sg.VE(sigma_max=40.0, data_std=std).prior_std())(30.0)) == pytest.approx(50.0)


@pytest.mark.parametrize("value", [2.5, True, "3", -1])
@pytest.mark.parametrize(("net", "name"), FIELDS)
def test_a_field_of_a_network_that_counts_is_an_integer(net, name, value):
    if net is auto:
        with pytest.raises((TypeError, ValueError), match=re.escape(f"{name}={value!r}")):
            auto((2,), **{name: value})
        return
    made = net(**({"levels": 3} if "levels" in inspect.signature(net).parameters else {}) | {name: value})
    if isinstance(getattr(net, name, None), tuple):
        made = made.clone(**{name: (value,)})
    with pytest.raises((TypeError, ValueError), match=re.escape(f"{name}={getattr(made, name)!r}")):
        jax.eval_shape(made.init, jax.random.key(0), jnp.zeros((2, 32, 32, 3)), sg.Cond(jnp.zeros(2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Checkpoints("x", keep=0), "keep=0: at least 1"),
        (lambda: make_optimizer(accumulate=1.5), "accumulate=1.5: an integer"),
        (lambda: sliced_wasserstein([[0.0]], [[1.0]], projections=2.5), "projections=2.5: an integer"),
        (lambda: make_eval(*EVAL, batch=0), "batch=0: at least 1"),
        (lambda: check_even(2 * 10**12), "batch=2000000000000: at most 2147483647"),
        (lambda: check_even(2**31 - 1, 2), "microbatch=2 does not divide the batch of 2147483647: take one such as 1"),
        (lambda: make_eval(*EVAL, count=0), "count=0: at least 1"),
        (lambda: check_fields(sg.nets.UNet(multipliers=()), multipliers=1), r"multipliers=\(\): one or more integers"),
        (lambda: check_fields(sg.nets.UNet(multipliers=2), multipliers=1), "multipliers=2: a tuple of integers"),
        (lambda: check_fields(sg.nets.UNet(multipliers=(1, 0)), multipliers=1), r"multipliers=\(1, 0\): at least 1"),
        (lambda: sg.SSM(slices=(1, 2)), r"slices=\(1, 2\): an integer"),
        (lambda: sg.Sampler(sg.Ancestral(), n=-1), "n=-1: at least 0"),
        (lambda: sg.LogNormal(mean=np.bool_(True)), "mean=.*True.*: a number"),
        (lambda: sg.LogNormal(mean=np.zeros(3)), "mean=.*: a number"),
        (lambda: sg.LogNormal(mean=jax.random.key(0)), "mean=.*: a number"),
        (lambda: sg.guidance.Grey(0), "channels=0: at least 1"),
        (lambda: sg.Sampler(sg.Ancestral(), n=True), "n=True"),
        (lambda: make_optimizer(clip=-1.0), "clip=-1.0: 0 or a positive finite number"),
        (lambda: sg.Objective(sg.EpsilonMSE(), label_dropout=1.0), "label_dropout=1.0: a number from 0 to below 1"),
        (lambda: sliced_wasserstein([[0.0]], [[1.0]], p=0.5), "p=0.5: a number of at least 1"),
        (lambda: sg.process.betas((0.1, "a")), "values='a': a number"),
        (lambda: sg.process.betas((0.1, None)), "values=None: a number"),
        (lambda: sg.process.sigmas((0.5, True)), "values=True: a number"),
        (lambda: sg.process.sigmas(0.1), "values=0.1: two or more numbers"),
        (lambda: sg.guidance.ClassifierFree(None, "a"), "scale='a': a number"),
        (lambda: sg.data.mixture(radius=np.array([1.0, 2.0])), r"mixture: radius=array\(\[1., 2.\]\): a number"),
        (lambda: sg.data.Prepare(sg.data.Centered(), augment=2.0), "augment=2.0: a probability"),
        (lambda: sg.data.Prepare(sg.data.Centered(), crop=-1), "crop=-1: at least 0"),
        (lambda: sg.data.Prepare(sg.data.Centered(), crop=1.0), "crop=1.0: an integer"),
        (lambda: sg.data.random_crop(None, np.zeros((1, 4, 4, 1)), -1), "pixels=-1: at least 0"),
        (lambda: SCHEDULES["cosine"](1.0, "a"), "steps='a': an integer"),
        (lambda: auto((2,), memory=0.0), "memory=0.0: a positive finite number"),
        (lambda: auto((2,), memory="a"), "memory='a': a number"),
        (lambda: auto((2, 0)), r"shape=\(2, 0\): at least 1"),
        (lambda: sg.nets.memory(sg.nets.MLP(), (2,), 0), "batch=0: at least 1"),
        (lambda: sg.guidance.Clip("a", 1.0), "low='a': a number"),
        (lambda: sg.guidance.Clip(-1.0, 1.0, reach=0.0), "reach=0.0: a positive finite number"),
        (lambda: sg.guidance.DynamicThreshold(0.0, 1.0, most=0.5), "most=0.5: a number of at least 1"),
        (lambda: sg.guidance.DynamicThreshold(0.0, 1.0, quantile=2.0), "quantile=2.0: more than 0, and 1 or less"),
    ],
)
def test_other_numbers(call, message):
    with pytest.raises((TypeError, ValueError, UsageError), match=message):
        call()


EVAL = sg.Model(sg.ddpm(), sg.nets.MLP(width=8)), sg.Objective(sg.EpsilonMSE()), sg.data.mixture(size=10)
