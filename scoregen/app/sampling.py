"""Drawing from a trained model in batches: how, under which process, of which classes, and from which measurements."""

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
    from scoregen.data import Dataset
    from scoregen.guidance import Control
    from scoregen.process import Process
    from scoregen.samplers import Sampler
    from scoregen.train import Model

Wrapper = Callable[[Denoiser], Denoiser]


@dataclasses.dataclass(frozen=True, eq=False)
class Sampling:
    """How samples are drawn from a model. Parameters are passed in, so one object serves pictures all through training.

    Sample i depends on the seed and on i, not on the size of the batches; so do its class and the image it completes.

    Attributes:
        model: the model.
        sampler: the walk down the noise levels.
        shape: the shape of one example.
        scaling: between the units of the data and those of the network.
        process: the process to sample under, within the noise range of `model.process`.
        is_image: whether the data are uint8 images, so that samples in their units are bytes.
        hold_x0: a wrapper that keeps estimates of x0 in the range of the data, or None.
        labels: classes `[N]`; sample i has class labels[i mod N]. None for no classes.
        guidance: eps = eps(no class) + guidance (eps(class) - eps(no class)).
        control: completes the held-out images of `dataset`, or None.
        dataset: the data, where they are needed.
        seed: of the draws.
        batch: examples at a time, rounded up to a multiple of the number of devices.
    """

    model: Model
    sampler: Sampler
    shape: tuple[int, ...]
    scaling: Any
    process: Process
    is_image: bool = False
    hold_x0: Wrapper | None = None
    labels: np.ndarray | None = None
    guidance: float = 1.0
    control: Control | None = None
    dataset: Dataset | None = None
    seed: int = 0
    batch: int = 256

    @property
    def levels(self) -> int:
        """How many noise levels a walk has."""
        return int(self.sampler.levels(self.process).shape[0])

    def guided(self, unconditional: Denoiser, denoiser: Denoiser | None = None) -> Denoiser:
        """Guidance away from `unconditional`, towards `denoiser` (itself, if only the evaluations count)."""
        return ClassifierFree(unconditional, self.guidance)(denoiser or unconditional)

    def denoiser(self, params: Any, labels: Array | None = None, clean: Array | None = None) -> Denoiser:
        """The denoiser under `process`: of the classes `labels` `[B]`, given the measurements of `clean` `[B, ...]`."""
        denoiser = self.model.denoiser(params, None if labels is None else Cond(None, label=labels))
        if labels is not None:
            denoiser = self.guided(self.model.denoiser(params), denoiser)
        if self.process is not self.model.process:
            denoiser = denoiser.under(self.process)
        wrappers = [] if self.hold_x0 is None else [self.hold_x0]
        if self.control is not None and clean is not None:
            # A replaced x0 must stay as it is, so it comes last; a gradient would see nothing through a clip.
            wrappers.insert(len(wrappers) if self.control.method == "replace" else 0, self.control(clean))
        for wrapper in wrappers:
            denoiser = wrapper(denoiser)
        return denoiser

    def to_data(self, samples: np.ndarray) -> np.ndarray:
        """Samples in the network's units as they are in the data: bytes for images, or as they are."""
        return self.scaling.to_bytes(samples) if self.is_image else samples

    def labels_of(self, index: np.ndarray) -> np.ndarray | None:
        """The classes of these samples, `[B]`."""
        return None if self.labels is None else self.labels[index % len(self.labels)]

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
        labels: np.ndarray | None = None,
        batch: int | None = None,
    ) -> np.ndarray | None:
        """Samples `[count, ...]` in the network's units, a batch at a time.

        Args:
            params: the parameters.
            count: how many.
            progress: called with the number of levels that are done, of `levels` times the number of batches.
            stopped: checked before every batch; once it is true, the result is None.
            seed, labels, batch: in the place of its own.
        """
        # The last batch is filled up, so that one program serves them all.
        size, several = mesh.round_up(batch or self.batch), mesh.processes() > 1
        batches = -(-count // size)
        keys = example_keys(sampling_key(self.seed if seed is None else seed), batches * size)
        labels = self.labels if labels is None else labels
        drawn = []
        for i in range(batches):
            if stopped():
                return None
            done = i * self.levels
            self._listener[:] = [lambda level, done=done: progress(done + level)] if progress else []
            index = np.arange(i * size, (i + 1) * size)
            known = None if labels is None else labels[index % len(labels)]
            examples = map(mesh.spread, (keys[index], known, self.clean_of(index)))
            drawn.append(np.asarray(self.draw(params, *examples)))
            jax.effects_barrier()
            if several:  # a device can call its own process alone: then each counts the batches
                self._tell(self.levels)
        return np.concatenate(drawn)[:count]

    def batch_for(self, count: int) -> int:
        """The batch for a single call: `count` at most, unless the examples of a batch depend on each other."""
        together = getattr(self.sampler.corrector, "batch_mean", False)
        return self.batch if together else min(self.batch, count)

    @functools.cached_property
    def draw(self) -> Callable[..., Array]:
        """One jitted walk: (params, keys `[B]`, labels `[B]` or None, clean images or None) -> samples `[B, ...]`."""
        return self.drawer(None if mesh.processes() > 1 else self._tell)

    def drawer(self, progress: Callable[[int], None] | None) -> Callable[..., Array]:
        """`draw`, where the device calls `progress` with the number of levels that are done."""

        @functools.partial(jax.jit, out_shardings=mesh.everywhere())
        def draw(params: Any, keys: Array, labels: Array | None, clean: Array | None) -> Array:
            denoiser = self.denoiser(params, labels, clean)
            return self.sampler(denoiser, keys, (keys.shape[0], *self.shape), progress=progress)

        return draw

    @functools.cached_property
    def _listener(self) -> list[Callable[[int], None]]:
        return []  # who hears of the levels that are done: the compiled program stays the same

    def _tell(self, level: int) -> None:
        for listener in self._listener:
            listener(int(level))


def sampling_key(seed: int) -> Array:
    """The key that samples are drawn with; training uses the seed itself, held-out data the next one."""
    return jax.random.key((seed + 2) % 2**32)


def held_out(dataset: Dataset, scaling: Any, seed: int, index: np.ndarray) -> Array:
    """Held-out examples as the network sees data, `[B, ...]`, from the first again after the last."""
    assert dataset.test is not None
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key((seed + 1) % 2**32), jnp.asarray(index))
    return scaling(dataset.test[index % len(dataset.test)], keys)
