"""Drawing samples from a trained model in batches, with a process, classes and measurements."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from scoregen.cond import Cond
from scoregen.denoiser import Denoiser
from scoregen.guidance import ClassifierFree
from scoregen.random import example_keys
from scoregen.train import mesh

if TYPE_CHECKING:
    from scoregen.data import Dataset, Units
    from scoregen.guidance import Control
    from scoregen.process import Process
    from scoregen.samplers import Sampler
    from scoregen.train import Model

Wrapper = Callable[[Denoiser], Denoiser]


@dataclasses.dataclass(frozen=True, eq=False)
class Sampling:
    """Draws samples from a model. The parameters are an argument, so one object works during the whole training.

    Sample i, its class and the image it completes depend on the seed and on i, but not on the batch size.

    Attributes:
        model: the model.
        sampler: the sampler, which goes down the noise levels.
        shape: the shape of one example.
        scaling: converts between the units of the data and of the network.
        process: the process of the sampling, within the noise range of `model.process`.
        is_image: whether the data are uint8 images; if so, samples in the units of the data are bytes.
        hold_x0: a wrapper that keeps estimates of x0 in the range of the data, or None.
        cond: classes `[N]` and contexts `[M, K]`, each or both; sample i has those of index i mod N and i mod M. None
            for a network without.
        guidance: eps = eps(without cond) + guidance (eps(with cond) - eps(without cond)).
        control: completes the held-out images of `dataset`, or None.
        dataset: the data, if `control` needs them.
        units: the units of the data, if they were standardised.
        context_units: the units of the contexts.
        seed: the random seed of the sampling.
        batch: the batch size, rounded up to a multiple of the number of devices.
    """

    model: Model
    sampler: Sampler
    shape: tuple[int, ...]
    scaling: Any
    process: Process
    is_image: bool = False
    hold_x0: Wrapper | None = None
    cond: Cond | None = None
    guidance: float = 1.0
    control: Control | None = None
    dataset: Dataset | None = None
    units: Units | None = None
    context_units: Units | None = None
    seed: int = 0
    batch: int = 256

    @property
    def levels(self) -> int:
        """The number of noise levels."""
        return int(self.sampler.levels(self.process).shape[0])

    def guided(self, unconditional: Denoiser, denoiser: Denoiser | None = None) -> Denoiser:
        """Guidance from `unconditional` to `denoiser`; None uses `unconditional` twice, to count evaluations."""
        return ClassifierFree(unconditional, self.guidance)(denoiser or unconditional)

    def denoiser(self, params: Any, cond: Cond | None = None, clean: Array | None = None) -> Denoiser:
        """The denoiser under `process`, for B classes and contexts, and measurements of `clean` `[B, ...]`."""
        denoiser = self.model.denoiser(params, cond)
        if cond is not None:
            denoiser = self.guided(self.model.denoiser(params), denoiser)
        if self.process is not self.model.process:
            denoiser = denoiser.under(self.process)
        wrappers = [] if self.hold_x0 is None else [self.hold_x0]
        if self.control is not None and clean is not None:
            # "replace" comes last, so that nothing changes the replaced x0. Other methods come first: they need the
            # gradient of x0, which a clip would set to 0.
            wrappers.insert(len(wrappers) if self.control.method == "replace" else 0, self.control(clean))
        for wrapper in wrappers:
            denoiser = wrapper(denoiser)
        return denoiser

    def to_data(self, samples: np.ndarray) -> np.ndarray:
        """Samples in the units, the type and the shape of the data; images are bytes."""
        samples = self.scaling.to_bytes(samples) if self.is_image else samples
        return samples if self.units is None else self.units.decode(samples)

    def cond_of(self, index: np.ndarray, cond: Cond | None = None) -> Cond | None:
        """The classes and the contexts of these samples: those of `cond`, or of the attribute."""
        cond = cond or self.cond
        return None if cond is None else jax.tree.map(lambda of: of[index % len(of)], cond)

    def clean_of(self, index: np.ndarray) -> Array | None:
        """The held-out images that these samples complete, `[B, ...]` in the network's units; None without control."""
        if self.control is None:
            return None
        assert self.dataset is not None
        return held_out(self.dataset, self.scaling, self.seed, index)

    def __call__(
        self,
        params: Any,
        count: int,
        progress: Callable[[int], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
        *,
        seed: int | None = None,
        cond: Cond | None = None,
        batch: int | None = None,
    ) -> np.ndarray | None:
        """Samples `[count, ...]` in the network's units, a batch at a time.

        Args:
            params: the parameters.
            count: the number of samples.
            progress: called with the number of finished levels; the total is `levels` times the number of batches.
            stopped: called before every batch; if it returns true, the result is None.
            seed, cond, batch: replace the attributes of the same name.
        """
        # The last batch is padded, so that one compiled program works for all batches.
        size, several = mesh.round_up(batch or self.batch), mesh.processes() > 1
        batches = -(-count // size)
        keys = example_keys(sampling_key(self.seed if seed is None else seed), batches * size)
        drawn = []
        for i in range(batches):
            if stopped():
                return None
            done = i * self.levels
            self._listener[:] = [lambda level, done=done: progress(done + level)] if progress else []
            index = np.arange(i * size, (i + 1) * size)
            examples = (keys[index], self.cond_of(index, cond), self.clean_of(index))
            examples = (jax.tree.map(mesh.spread, tree) for tree in examples)
            drawn.append(np.asarray(self.draw(params, *examples)))
            jax.effects_barrier()
            if several:  # a device can call only its own process, so each process counts the batches
                self._tell(self.levels)
        return np.concatenate(drawn)[:count]

    def batch_for(self, count: int) -> int:
        """The batch size for one call: at most `count`, unless the examples of a batch depend on each other."""
        together = getattr(self.sampler.corrector, "batch_mean", False)
        return self.batch if together else min(self.batch, count)

    @functools.cached_property
    def draw(self) -> Callable[..., Array]:
        """The jitted draw: (params, keys `[B]`, cond or None, clean images or None) -> samples `[B, ...]`."""
        return self.drawer(None if mesh.processes() > 1 else self._tell)

    def drawer(self, progress: Callable[[int], None] | None) -> Callable[..., Array]:
        """`draw`, but the device calls `progress` with the number of finished levels."""

        @functools.partial(jax.jit, out_shardings=mesh.everywhere())
        def draw(params: Any, keys: Array, cond: Cond | None, clean: Array | None) -> Array:
            denoiser = self.denoiser(params, cond, clean)
            return self.sampler(denoiser, keys, (keys.shape[0], *self.shape), progress=progress)

        return draw

    @functools.cached_property
    def _listener(self) -> list[Callable[[int], None]]:
        return []  # the callback for finished levels; a list, so that the compiled program stays the same

    def _tell(self, level: int) -> None:
        for listener in self._listener:
            listener(int(level))


def sampling_key(seed: int) -> Array:
    """The random key of the sampling, from seed + 2. Training uses the seed itself, and held-out data seed + 1."""
    return jax.random.key((seed + 2) % 2**32)


def held_out(dataset: Dataset, scaling: Any, seed: int, index: np.ndarray) -> Array:
    """Held-out examples in the network's units, `[B, ...]`. After the last example the first follows again."""
    assert dataset.test is not None
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key((seed + 1) % 2**32), jnp.asarray(index))
    return scaling(dataset.examples(index % len(dataset.test), test=True), keys)
