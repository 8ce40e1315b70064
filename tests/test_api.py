"""The public names exist, are imported lazily, and include the names that the design fixes."""

import importlib
import importlib.metadata
import inspect
import subprocess
import sys

import pytest

import scoregen as sg
from scoregen.likelihood import LIKELIHOODS
from scoregen.losses import LOSSES, WEIGHTINGS
from scoregen.process import PROCESSES
from scoregen.samplers import CORRECTORS, GRIDS, STEPS
from scoregen.times import TIMES

HEAVY = (
    "jax",
    "numpy",
    "flax",
    "optax",
    "orbax",
    "rich",
    "ml_collections",
    "absl",
    "tensorboardX",
    "matplotlib",
    "diffrax",
)
FIXED = [
    "ddpm",
    "cosine",
    "ncsn",
    "betas",
    "sigmas",
    "VP",
    "SubVP",
    "CosineVP",
    "VE",
    "EDM",
    "Flow",
    "Process",
    "perturb",
    "posterior",
    "drift_diffusion",
    "Denoiser",
    "Prediction",
    "Model",
    "Objective",
    "EpsilonMSE",
    "X0MSE",
    "FlowMatching",
    "DSM",
    "ISM",
    "SSM",
    "FDSSM",
    "VLB",
    "Hybrid",
    "MinSNR",
    "P2",
    "Sigmoid",
    "EDMWeight",
    "TimeLaw",
    "Own",
    "Uniform",
    "LogNormal",
    "LogitNormal",
    "UniformLogSNR",
    "SecondMoment",
    "Sampler",
    "Step",
    "Ancestral",
    "ReverseDiffusion",
    "EulerMaruyama",
    "Euler",
    "Heun",
    "EDMHeun",
    "DPMSolver",
    "UniPC",
    "Adaptive",
    "Hold",
    "Langevin",
    "SNRLangevin",
    "MALA",
    "Grid",
    "OwnGrid",
    "Karras",
    "Listed",
    "encode",
    "decode",
    "interpolate",
    "Clip",
    "DynamicThreshold",
    "ClassifierFree",
    "ProbabilityFlow",
    "Bound",
    "fit",
    "make_step",
    "load",
    "Cond",
    "nets",
    "data",
    "metrics",
    "testing",
]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_the_names_of_the_design_are_there():
    assert set(FIXED) <= set(sg.__all__)


@pytest.mark.parametrize("name", sg.__all__)
def test_every_name_is_what_it_says(name):
    found = getattr(sg, name)
    assert name in dir(sg)
    if inspect.isclass(found) or inspect.isfunction(found):
        assert found.__name__ == name
    elif inspect.ismodule(found):
        assert found is importlib.import_module(f"scoregen.{name}")


PARTS = (PROCESSES, TIMES, LOSSES, WEIGHTINGS, STEPS, CORRECTORS, GRIDS, LIKELIHOODS)


def test_every_part_of_the_tables_has_a_name():
    """`scoregen/__init__.py` and the package of the part name it. Entries without a name are aliases."""
    names = {part.__name__ for table in PARTS for part in table.values()} - {"<lambda>"}
    missing = sorted(names - set(sg.__all__))
    assert not missing, f"scoregen/__init__.py does not name {missing}"
    for package, table in ((sg.process, PROCESSES), (sg.losses, LOSSES), (sg.losses, WEIGHTINGS), (sg.samplers, STEPS)):
        missing = sorted({part.__name__ for part in table.values()} - {*package.__all__, "<lambda>"})
        assert not missing, f"{package.__name__} does not name {missing} in __all__"


def test_the_version_is_that_of_the_package():
    assert sg.__version__ == importlib.metadata.version("scoregen")


def test_the_import_loads_nothing():
    loaded = run("import sys, scoregen; dir(scoregen); print(*sys.modules)").split()
    assert not [name for name in loaded if name.split(".")[0] in HEAVY]
    assert [name for name in loaded if name.startswith("scoregen")] == ["scoregen"]


def test_training_loads_orbax_and_the_app_only_where_they_are_needed():
    loaded = run(
        "import sys, scoregen as sg; sg.fit, sg.Model, sg.make_step, sg.nets, sg.data, sg.Sampler; print(*sys.modules)"
    ).split()
    assert not [name for name in loaded if name.split(".")[0] in ("orbax", "ml_collections", "tensorboardX")]
    assert "scoregen.train.loop" in loaded and not [name for name in loaded if name.startswith("scoregen.app")]


def test_names_that_are_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'Ancestrl': did you mean 'Ancestral'"):
        sg.Ancestrl  # noqa: B018
    with pytest.raises(ImportError):
        from scoregen import nothing_like_it  # noqa: F401
    with pytest.raises(AttributeError, match=r"scoregen\.train.*'fti'"):
        sg.train.fti  # noqa: B018
