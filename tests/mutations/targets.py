"""What is mutated, which tests guard it, the mistakes that are written by hand, and the changes that break nothing."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import NamedTuple

from mutations.operators import Mutant, Written, functions, read


class Target(NamedTuple):
    """Modules below scoregen/ by a pattern, the test modules that guard them, and the functions by patterns.

    The quickest guard stands first, since the first failure ends a run. The examples in the module's own docstrings are
    the last guard.
    """

    modules: str
    guards: tuple[str, ...]
    functions: tuple[str, ...] = ("*",)


TARGETS = [
    Target("process/*.py", ("test_process.py", "test_bound.py")),
    Target("denoiser.py", ("test_denoiser.py", "test_conformance.py")),
    Target("times.py", ("test_times.py",)),
    Target("losses/matching.py", ("test_losses.py", "test_weightings.py", "test_conformance.py", "test_bound.py")),
    Target("losses/bound.py", ("test_bound.py", "test_conformance.py")),
    Target("losses/weightings.py", ("test_weightings.py",)),
    Target("losses/objective.py", ("test_objective.py", "test_losses.py", "test_weightings.py", "test_train.py")),
    Target("samplers/steps.py", ("test_predictors.py", "test_samplers.py", "test_orders.py")),
    Target("samplers/multistep.py", ("test_predictors.py", "test_samplers.py", "test_orders.py")),
    Target("samplers/correctors.py", ("test_predictors.py", "test_samplers.py")),
    Target("samplers/sampler.py", ("test_predictors.py", "test_samplers.py")),
    Target("samplers/grids.py", ("test_grids.py", "test_predictors.py", "test_samplers.py")),
    Target("samplers/ode.py", ("test_predictors.py", "test_likelihood.py")),
    Target("samplers/encode.py", ("test_guidance.py",)),
    Target("guidance/*.py", ("test_guidance.py", "test_predictors.py")),
    Target("likelihood.py", ("test_likelihood.py",)),
    Target("train/ema.py", ("test_averages.py",)),
    Target("train/step.py", ("test_train.py",), ("make_step*", "make_eval*", "prepared")),
    Target("train/model.py", ("test_model.py", "test_train.py"), ("Model.*",)),
    Target("metrics/features.py", ("test_metrics.py",), ("classifier_features.*", "_train*")),
    Target("metrics/resize.py", ("test_inception.py",)),
    Target("nets/pretrained.py", ("test_inception.py",)),
    *(
        Target(f"metrics/{name}.py", ("test_metric_family.py", "test_metrics.py"))
        for name in ("frechet", "kernels", "wasserstein", "neighbours", "floor", "pairs", "prdc", "inception_score")
    ),
    Target("metrics/statistics.py", ("test_metric_family.py",), ("Moments.*", "Statistics.root")),
]

# Checks, refusals and the code that makes a class a pytree hold no formulas, and have tests of their own.
NOT_MUTATED = (
    *("__init__", "__post_init__", "__new__", "__init_subclass__", "__str__", "__repr__", "__hash__", "__eq__"),
    *("check_*", "_check*", "refuse*", "_refus*", "_flatten", "_unflatten", "tree_*", "_attributes", "_holds_arrays"),
    *("has_values", "named", "variants"),
)


def modules(root: Path) -> list[tuple[str, Target]]:
    """The modules that are mutated, each with its target, in the order of the targets."""
    found: dict[str, Target] = {}
    for target in TARGETS:
        for path in sorted((root / "scoregen").glob(target.modules)):
            if path.name != "__init__.py":
                found.setdefault(str(path.relative_to(root / "scoregen")), target)  # the first target that fits
    return list(found.items())


def is_mutated(function: str, target: Target) -> bool:
    """Whether a function of this name is one of the target's."""
    parts = function.split(".")
    if any(fnmatch.fnmatchcase(part, pattern) for part in parts for pattern in NOT_MUTATED):
        return False
    return any(fnmatch.fnmatchcase(function, pattern) for pattern in target.functions)


def guards(mutant: Mutant) -> tuple[str, ...]:
    """The test modules to run, as paths below the root."""
    for written in WRITTEN:
        if written.guards and mutant.operator == "written" and written.meaning == mutant.meaning:
            return tuple(f"tests/{name}" for name in written.guards)
    target = next(target for target in TARGETS if fnmatch.fnmatchcase(mutant.module, target.modules))
    return (*(f"tests/{name}" for name in target.guards), f"scoregen/{mutant.module}")


# Mistakes that no operator makes, and mistakes to try in every run.
WRITTEN = [
    Written(
        "process/chain.py",
        "_variance_preserving",
        "np.cumsum(np.log1p(-_A))",
        "np.cumsum(np.log1p(-np.roll(_A, 1)))",
        "abar of a chain shifted by one level",
    ),
    Written(
        "random.py",
        "example_keys",
        "jnp.arange(_A)",
        "jnp.zeros(_A, int)",
        "the same noise for every example",
        ("test_process.py",),
    ),
    Written(
        "losses/bound.py",
        "Hybrid.__call__",
        "VLB(self.bins, _A, _B, self.width)",
        "VLB(None, _A, _B, self.width)",
        "the bound of the hybrid loss that of a density",
    ),
    Written(
        "samplers/sampler.py",
        "_sample.level",
        "split_keys(fold_keys(_A, k), 2)",
        "split_keys(fold_keys(_A, k), 2)[:1] * 2",
        "the corrector and the step draw the same noise",
        ("test_samplers.py",),
    ),
    Written(
        "samplers/grids.py",
        "EvenTime.__call__",
        "np.floor(_A + 0.5)",
        "np.floor(_A)",
        "the grid of a chain rounds down",
    ),
    Written(
        "samplers/steps.py",
        "ReverseDiffusion.step",
        "2 - _A",
        "1 / _A",
        "the ancestral step for reverse diffusion",
    ),
    Written(
        "samplers/steps.py",
        "EulerMaruyama.step",
        "_A ** 2 * h",
        "0.5 * _A ** 2 * h",
        "the drift of the ODE in Euler-Maruyama",
    ),
    Written(
        "samplers/multistep.py",
        "UniPC._weights",
        "jnp.where(h < _A, series, phi)",
        "series",
        "the series of UniPC's weights also for long steps",
    ),
    Written(
        "samplers/correctors.py",
        "MALA.__call__.step",
        "_A - _B + log_q(_C, _D, _E) - log_q(_D, _C, _F)",
        "_A - _B",
        "the proposal of MALA taken for symmetric",
    ),
    Written(
        "samplers/ode.py",
        "solve",
        "diffrax.PIDController(rtol, atol)",
        "diffrax.PIDController(0.01, 0.01)",
        "the tolerances of the ODE's solver not passed on",
    ),
    Written(
        "samplers/encode.py",
        "slerp.share",
        "jnp.sin(_A * _B)",
        "_A * jnp.sin(_B)",
        "the chord for the arc",
    ),
    Written(
        "guidance/measurements.py",
        "Pixels.nearest",
        "_A.at[:, self.index].set(y)",
        "_A.at[:, self.index].add(y)",
        "measured pixels added to the estimate, not put in its place",
    ),
    Written(
        "guidance/measurements.py",
        "_jacobian",
        "jnp.linalg.eigh(_A, symmetrize_input=True)",
        "jnp.linalg.eigh(_A, symmetrize_input=False)",
        "a covariance that is not symmetric",
    ),
    Written(
        "likelihood.py",
        "ProbabilityFlow.at_the_end",
        "jnp.std(_A, 1, ddof=1)",
        "jnp.std(_A, 1)",
        "the standard error of Hutchinson's estimate without ddof = 1",
    ),
    Written(
        "likelihood.py",
        "ProbabilityFlow.at_the_end",
        "by_example(jax.random.rademacher, key, _A)",
        "by_example(jax.random.rademacher, jax.random.key(0), _A)",
        "directions that do not depend on the key",
    ),
    Written(
        "likelihood.py",
        "Bound._loss",
        "VLB(self.bins, _A, self.variance, self.width)",
        "VLB(self.bins, _A)",
        "the bound's variance and width not passed on",
    ),
    Written(
        "likelihood.py",
        "Bound.__call__.once",
        "_A + u",
        "0.5 * _A + u",
        "half of the strata",
    ),
    Written(
        "train/step.py",
        "make_step.step",
        "jax.tree.map(mix, state.ema, params)",
        "jax.tree.map(mix, state.ema, state.params)",
        "the average is one step late",
    ),
    Written(
        "train/loop.py",
        "train.save",
        "held_out(state.ema, _A, _B)",
        "held_out(state.params, _A, _B)",
        "the held-out loss of the raw parameters, not of their average",
        ("test_fit.py",),
    ),
    Written(
        "train/state.py",
        "restore_average",
        'checkpoints.restore_part("ema", _A, best=best)',
        'checkpoints.restore_part("params", _A, best=best)',
        "a trained run samples with the raw parameters, not with their average",
        ("test_fit.py",),
    ),
    Written(
        "app/actions.py",
        "Action.train",
        "api.Run(_A, _B, state.ema, _C, _D)",
        "api.Run(_A, _B, state.params, _C, _D)",
        "sampling with the raw parameters after training, not with their average",
        ("test_build.py", "test_guided_runs.py", "test_run.py"),
    ),
    Written(
        "metrics/features.py",
        "classifier_features",
        "train.astype(np.float32) if len(train) < _A else train[:_A].astype(np.float32)",
        "test.astype(np.float32)",
        "the classifier normalised by test data",
    ),
]


class Equivalent(NamedTuple):
    """A change that breaks nothing a test could see, and why. Function and expressions may have * for any text."""

    module: str
    function: str
    before: str
    after: str
    reason: str

    def matches(self, mutant: Mutant) -> bool:
        patterns = (self.module, self.function, self.before, self.after)
        texts = (mutant.module, mutant.function, mutant.before, mutant.after)
        return all(fnmatch.fnmatchcase(t, p.replace("[", "[[]")) for t, p in zip(texts, patterns, strict=True))


SAME_LAW = "noise with the other sign has the same law"
CENTRES = "the data are the centres of the bins, never their edges"
EQUIVALENT = [
    Equivalent(
        "samplers/*.py", "*", "* + *normal(key, x.shape, x.dtype)", "* - *normal(key, x.shape, x.dtype)", SAME_LAW
    ),
    Equivalent("samplers/correctors.py", "_Langevin.*", "* + jnp.sqrt(2 * h) * z", "* - jnp.sqrt(2 * h) * z", SAME_LAW),
    Equivalent("samplers/correctors.py", "MALA.*", "* + *normal(move, *)", "* - *normal(move, *)", SAME_LAW),
    Equivalent("samplers/steps.py", "EDMHeun.*", "* + * * z", "* - * * z", SAME_LAW),
    Equivalent(
        "likelihood.py", "*", "x0 + self.bins[2] * *", "x0 - self.bins[2] * *", "u - 1/2 has the same law as 1/2 - u"
    ),
    Equivalent(
        "losses/bound.py", "decoder_nll", "below + above > 0", "below + above >= 0", "at 0 both sides are mirror images"
    ),
    Equivalent("losses/bound.py", "decoder_nll", "x0 < low + *", "x0 <= low + *", CENTRES),
    Equivalent("losses/bound.py", "decoder_nll", "x0 > high - *", "x0 >= high - *", CENTRES),
]


def target_functions(root: Path) -> dict[str, list[str]]:
    """The functions that are mutated, by module."""
    return {
        module: [found.name for found in functions(read(root, module)) if is_mutated(found.name, target)]
        for module, target in modules(root)
    }
