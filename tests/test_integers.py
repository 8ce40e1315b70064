"""Every option that is an integer refuses all other values, and values that are too small, by its name."""

import inspect

import jax
import jax.numpy as jnp
import pytest

import scoregen as sg
from scoregen.data import SOURCES
from scoregen.errors import UsageError, check_fields
from scoregen.guidance import CONTROLS
from scoregen.likelihood import LIKELIHOODS
from scoregen.losses import LOSSES
from scoregen.metrics import sliced_wasserstein
from scoregen.nets import NETS
from scoregen.process import PROCESSES
from scoregen.samplers import CORRECTORS, STEPS
from scoregen.times import TIMES
from scoregen.train import AVERAGES, OPTIMIZERS, SCHEDULES, Checkpoints, check_even, make_eval, make_optimizer

TABLES = (PROCESSES, TIMES, LOSSES, STEPS, CORRECTORS, CONTROLS, AVERAGES, OPTIMIZERS, SCHEDULES, LIKELIHOODS, SOURCES)
ELSEWHERE = {  # these are numbers, or they have their own messages
    *("halflife-images", "cifar10-size", "fashion_mnist-size", "ncsnpp-filter", "unet-attention", "ncsnpp-attention"),
    *("refinenet-num_classes", "refinenet_v2-num_classes"),
}


def integers(make):
    """The names of the parameters whose default is an integer, or a tuple of integers, or that are annotated so."""
    for name, parameter in inspect.signature(make).parameters.items():
        default = parameter.default
        if isinstance(default, tuple):
            yield from (name for _ in default[:1] if type(default[0]) is int)
        elif type(default) is int or parameter.annotation in (int, "int"):
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
    required = {key: 10 for key in ("learning_rate", "steps") if make in SCHEDULES.values()}
    required |= {"learning_rate": 1e-3} if make in OPTIMIZERS.values() else {}
    with pytest.raises((TypeError, ValueError, UsageError), match=rf"{name}={value!r}"):
        make(**required | {name: value})


@pytest.mark.parametrize("value", [2.5, True, "3", -1])
@pytest.mark.parametrize(("net", "name"), FIELDS)
def test_a_field_of_a_network_that_counts_is_an_integer(net, name, value):
    made = net(**({"levels": 3} if "levels" in inspect.signature(net).parameters else {}) | {name: value})
    if isinstance(getattr(net, name, None), tuple):
        made = made.clone(**{name: (value,)})
    with pytest.raises((TypeError, ValueError), match=rf"{name}={value!r}"):
        jax.eval_shape(made.init, jax.random.key(0), jnp.zeros((2, 32, 32, 3)), sg.Cond(jnp.zeros(2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Checkpoints("x", keep=0), "keep=0: at least 1"),
        (lambda: make_optimizer(accumulate=1.5), "accumulate=1.5: an integer"),
        (lambda: sliced_wasserstein([[0.0]], [[1.0]], projections=2.5), "projections=2.5: an integer"),
        (lambda: make_eval(*EVAL, batch=0), "batch=0: at least 1"),
        (lambda: check_even(2 * 10**12), "batch=2000000000000: at most 2147483647"),
        (lambda: check_even(2**31 - 1, 2), "microbatch=2 does not divide the batch of 2147483647: take one of 1"),
        (lambda: make_eval(*EVAL, count=0), "count=0: at least 1"),
        (lambda: check_fields(sg.nets.UNet(multipliers=()), multipliers=1), r"multipliers=\(\): one or more numbers"),
        (lambda: sg.guidance.Grey(0), "channels=0: at least 1"),
        (lambda: sg.Sampler(sg.Ancestral(), n=True), "n=True"),
    ],
)
def test_other_numbers(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


EVAL = sg.Model(sg.ddpm(), sg.nets.MLP(width=8)), sg.Objective(sg.EpsilonMSE()), sg.data.mixture(size=10)
