"""Drawing samples from a trained model in batches, with a process, classes and measurements."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from scoregen.cond import Cond
from scoregen.denoiser import Denoiser
from scoregen.guidance import ClassifierFree
from scoregen.train import mesh

if TYPE_CHECKING:
    from scoregen.data import Dataset, Units
    from scoregen.guidance import Control
    from scoregen.process import Process
    from scoregen.samplers import Sampler
    from scoregen.train import Model

Wrapper = Callable[[Denoiser], Denoiser]


class Place(NamedTuple):
    """What determines samples `[B]` beside the model: see `Draws`."""

    seed: np.ndarray
    number: np.ndarray
    turn: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Draws:
    """Which samples to draw, in which order: `each` samples of every seed.

    The noise of a sample depends on its seed and on its number i among the samples of this seed, 0 <= i < each. Its
    class, its context and the image it completes are those of its turn, turns + i.

    Attributes:
        seeds: the seeds `[S]`, each 0 to 2^32 - 1.
        each: the number of samples of every seed.
        turns: for each seed the turn of its first sample `[S]`.

    >>> draws = Draws.of_seeds([7, 9], each=2)
    >>> len(draws), [part.tolist() for part in draws.at(np.arange(4))]
    (4, [[7, 7, 9, 9], [0, 1, 0, 1], [14, 15, 18, 19]])
    """

    seeds: np.ndarray
    each: int
    turns: np.ndarray

    @classmethod
    def first(cls, count: int, seed: int) -> Draws:
        """The first `count` samples of one seed."""
        return cls(np.array([seed]), count, np.zeros(1, np.int64))

    @classmethod
    def of_seeds(cls, seeds: Iterable[int], each: int = 1) -> Draws:
        """The first samples of several seeds. All turns of a seed depend on the seed, and not on the other seeds."""
        chosen = np.asarray(seeds, np.int64)
        return cls(chosen, each, chosen * each)

    def __len__(self) -> int:
        return len(self.seeds) * self.each

    def at(self, index: np.ndarray) -> Place:
        """The places of samples `[B]` by their index. After the end, the numbers of the last seed go on."""
        which = np.minimum(index // self.each, len(self.seeds) - 1)
        number = index - which * self.each
        return Place(self.seeds[which], number, self.turns[which] + number)


@dataclasses.dataclass(frozen=True, eq=False)
class Sampling:
    """Draws samples from a model. The parameters are an argument, so one object works during the whole training.

    Sample i, its class and the image it completes depend on the seed and on i, but not on the batch size. `Draws` names
    samples of several seeds.

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
        count: int | Draws,
        progress: Callable[[int], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
        *,
        seed: int | None = None,
        cond: Cond | None = None,
        batch: int | None = None,
    ) -> np.ndarray | None:
        """Samples `[count, ...]` in the network's units; None if `stopped` ended the work.

        `seed` replaces the attribute. For the other arguments see `batches`.
        """
        draws = self.draws(count, seed)
        drawn = [samples for _, samples in self.batches(params, draws, progress, stopped, cond=cond, batch=batch)]
        return np.concatenate(drawn) if sum(map(len, drawn)) == len(draws) else None

    def draws(self, count: int | Draws, seed: int | None = None) -> Draws:
        """The first `count` samples of the seed; None is the attribute. Other `Draws` are returned as they are."""
        return count if isinstance(count, Draws) else Draws.first(count, self.seed if seed is None else seed)

    def batches(
        self,
        params: Any,
        count: int | Draws,
        progress: Callable[[int], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
        *,
        cond: Cond | None = None,
        batch: int | None = None,
        blocks: Iterable[int] | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """A batch at a time, the index `[B]` of its samples and the samples `[B, ...]` in the network's units.

        Batch k has the samples from k B to (k + 1) B; the last one may be smaller. Only one batch is in memory.

        Args:
            params: the parameters.
            count: the number of samples, or which ones.
            progress: called with the number of finished levels; the total is `levels` times the number of batches.
            stopped: called before every batch; if it returns true, the iterator ends.
            cond, batch: replace the attributes of the same name.
            blocks: which batches to draw, in this order; None for all. The next one is asked for when it is needed.
        """
        draws = self.draws(count)
        size, several = mesh.round_up(batch or self.batch), mesh.processes() > 1
        for block in range(-(-len(draws) // size)) if blocks is None else blocks:
            if stopped():
                return
            done = block * self.levels
            self._listener[:] = [lambda level, done=done: progress(done + level)] if progress else []
            # The last batch is padded, so that one compiled program works for all batches.
            index = np.arange(block * size, (block + 1) * size)
            place = draws.at(index)
            examples = (keys_of(place), self.cond_of(place.turn, cond), self.clean_of(place.turn))
            examples = (jax.tree.map(mesh.spread, tree) for tree in examples)
            samples = np.asarray(self.draw(params, *examples))
            jax.effects_barrier()
            if several:  # a device can call only its own process, so each process counts the batches
                self._tell(self.levels)
            kept = min(size, len(draws) - block * size)
            yield index[:kept], samples[:kept]

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


def keys_of(place: Place) -> Array:
    """The random keys `[B]` of samples: `fold_in(sampling_key(seed), number)`."""
    return _keys_of(*(part.astype(np.uint32) for part in ((place.seed + 2) % 2**32, place.number)))


@jax.jit
def _keys_of(seeds: Array, numbers: Array) -> Array:
    return jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))(seeds, numbers)


def held_out(dataset: Dataset, scaling: Any, seed: int, index: np.ndarray) -> Array:
    """Held-out examples in the network's units, `[B, ...]`. After the last example the first follows again."""
    assert dataset.test is not None
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key((seed + 1) % 2**32), jnp.asarray(index))
    return scaling(dataset.examples(index % len(dataset.test), test=True), keys)
