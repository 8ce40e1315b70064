"""Features to compare images by, and those of a small classifier, which is trained once and cached."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scoregen import cache
from scoregen.errors import UsageError
from scoregen.metrics.statistics import Origin

_VERSION = 2  # part of the cache key: raise it whenever the training or the architecture below changes
_BATCH = 128
_log = logging.getLogger(__name__)


class Outputs(NamedTuple):
    """What a classifier says of N images: features [N, F] and logits [N, K], both float32. Logits may be left out."""

    features: np.ndarray
    logits: np.ndarray | None


Images = np.ndarray | Iterable[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Features:
    """A feature extractor: uint8 images [N, H, W, C] -> float32 [N, F].

    `inception_features`, `efficientnet_features` and `classifier_features` make them. The images are an array, or an
    iterable of arrays, such as the batches of a sampler. They are evaluated in batches of one shape, so that each
    network is compiled once for images of one size; only one batch is in memory, beside what is returned.

    Attributes:
        name: for reports, such as "Inception (pytorch-fid resizing), sha256 6726825d".
        key: a hexadecimal hash of all that the features depend on. Compare results only at equal keys.
        network: a short name for the titles of metrics, such as "EfficientNet-Lite0".
        shape: (H, W, C) of the images; None for any H and W, and one or three channels.
        batch: the number of images in a batch.
        resize: how the images are resized, "" if they are not.
        accuracy: share of the held-out images that the classifier of a data set gets right, in [0, 1].
    """

    name: str
    key: str
    network: str
    _apply: Callable[[np.ndarray], tuple[Any, Any]] = dataclasses.field(repr=False)
    shape: tuple[int, int, int] | None = None
    batch: int = 256
    resize: str = ""
    accuracy: float | None = None

    def origin(self, rounding: str = "", pictures: str = "") -> Origin:
        """How these features are made, of images that came from floats by `rounding`, and are `pictures` large."""
        return Origin(self.network, self.key, self.resize, rounding, pictures)

    def __call__(self, images: Images) -> np.ndarray:
        """Features of uint8 images in float32 [N, F].

        Raises:
            ValueError: if the images are not uint8, do not have the shape that is needed, or are an iterable without an
                array. Round a sampler's floats to bytes first, so that samples and real images are treated alike.
        """
        return self.outputs(images, logits=False).features

    def logits(self, images: Images) -> np.ndarray:
        """Logits of the classes in float32 [N, K], for the Inception score. Raises as `__call__` does."""
        return _gathered(batch[:1] for batch in self._evaluated(images))[0]

    def outputs(self, images: Images, *, logits: bool = True) -> Outputs:
        """Features, and the logits of the same images unless they are left out. Raises as `__call__` does."""
        if not logits:
            return Outputs(_gathered(batch[1:] for batch in self._evaluated(images))[0], None)
        scores, features = _gathered(self._evaluated(images))
        return Outputs(features, scores)

    def stream(self, images: Images) -> Iterator[Outputs]:
        """Features and logits batch by batch, for sums over more images than fit into memory.

        An array without images gives one batch without rows. Raises as `__call__` does.
        """
        for logits, features in self._evaluated(images):
            yield Outputs(features, logits)

    def _evaluated(self, images: Images) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Logits and features of each batch."""
        size = 0
        for batch in _batches(map(self._checked, [images] if isinstance(images, np.ndarray) else images), self.batch):
            # A set that is smaller than a batch is padded to a power of two, and what is left at the end to a batch.
            size = max(size, 1)
            while size < min(len(batch), self.batch):
                size *= 2
            size = min(size, self.batch)
            padded = np.concatenate([batch, np.zeros((size - len(batch), *batch.shape[1:]), np.uint8)])
            logits, features = (np.asarray(out)[: len(batch)] for out in self._apply(padded))
            yield logits, features
        if not size:
            raise ValueError("there are no images: an iterable of at least one array is needed")

    def _checked(self, images: np.ndarray) -> np.ndarray:
        fits = images.ndim == 4 and (
            images.shape[1:] == self.shape if self.shape else images.shape[3] in (1, 3) and 0 not in images.shape[1:]
        )
        if images.dtype != np.uint8 or not fits:
            wanted = ", ".join(map(str, self.shape)) if self.shape else "H, W, 1 or 3"
            raise ValueError(f"uint8 images [N, {wanted}] are needed, not {images.dtype} {images.shape}")
        return images


def _gathered(batches: Iterable[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The rows of all batches, for each of the arrays in a batch.

    They are never in memory twice, as 50,000 features of Inception take 0.4 GB.

    >>> [rows.tolist() for rows in _gathered((np.full((n, 1), n), np.zeros((n, 1))) for n in (1, 2))]
    [[[1], [2], [2]], [[0.0], [0.0], [0.0]]]
    """
    rows: list[np.ndarray] = []
    count = 0
    for batch in batches:
        rows = rows or [np.empty_like(part) for part in batch]
        more = count + len(batch[0])
        if more > len(rows[0]):
            for i, part in enumerate(batch):
                # In place: a large block of memory is moved without a copy.
                rows[i].resize((max(more, 5 * count // 4), *part.shape[1:]), refcheck=False)
        for i, part in enumerate(batch):
            rows[i][count:more] = part
        count = more
    for each in rows:
        each.resize((count, *each.shape[1:]), refcheck=False)
    return rows


def _batches(arrays: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The rows of all arrays in batches of `size`; images of another shape begin a new batch.

    >>> [batch.tolist() for batch in _batches([np.arange(2), np.arange(2, 7), np.arange(7, 8)], 3)]
    [[0, 1, 2], [3, 4, 5], [6, 7]]
    """
    rest: np.ndarray | None = None
    for array in arrays:
        if rest is None:
            rest = array[:0]
        elif rest.shape[1:] != array.shape[1:]:
            yield rest
            rest = array[:0]
        first = 0
        while len(rest) + len(array) - first >= size:
            taken = array[first : first + size - len(rest)]
            yield np.concatenate([rest, taken])
            first += len(taken)
            rest = array[:0]
        rest = np.concatenate([rest, array[first:]])
    if rest is not None:
        yield rest


def is_labelled(dataset: Any) -> bool:
    """Whether `classifier_features` has the labels that it needs: those of the training and of the held-out images."""
    return all(getattr(dataset, field, None) is not None for field in ("train_labels", "test_labels"))


def classifier_features(
    dataset: Any,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    steps: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Features:
    """Features of a small classifier trained on a data set's own labels, for a Frechet distance.

    The classifier is `scoregen.nets.Classifier`, trained with Adam on the cross-entropy, in batches of 128
    with a one-cycle learning rate. Its 64 features are the activations before the last layer, averaged over
    the pixels. They respond to differences between the classes, and hardly to others, so use a
    second distance too. A Frechet distance in them is not an FID, which needs Inception features.

    The trained classifier is cached in one .npz file, named by a hash of the images and labels, the
    architecture, the seed, the steps and a version. If the file cannot be read or does not fit, it is made
    again. If the folder cannot be written, nothing is cached. Both give a warning of one line.

    Args:
        dataset: has `name`, uint8 images `train` and `test` [N, H, W, C], and integer `train_labels` and
            `test_labels` [N], counted from 0.
        cache_dir: the folder of the file; None for $SCOREGEN_CACHE, or ~/.cache/scoregen if that is not set.
        seed: the seed of the initial parameters and of the batches.
        steps: training steps; None for four passes over the data, but at least 200 and at most 1000 steps.
        progress: a function that gets one line of text now and then. None gives only warnings, by `logging`.

    Raises:
        UsageError: if the data set has no labels, no uint8 images, or no held-out ones, or if the labels are not one
            class, counted from 0, for each image.
    """
    say = progress or (lambda line: None)
    warn = progress or _log.warning
    train, test, train_labels, test_labels = _checked(dataset)
    steps = int(np.clip(4 * len(train) // _BATCH, 200, 1000)) if steps is None else steps
    classes = int(max(train_labels.max(), test_labels.max())) + 1

    import jax  # here and not above, so that a distance alone does not wait for JAX
    import jax.numpy as jnp

    from scoregen.nets.classifier import Classifier

    net = Classifier(classes=classes)
    shape = train.shape[1:]
    pixels = train.astype(np.float32) if len(train) < 5000 else train[:5000].astype(np.float32)
    # One grey level is added, so that a constant channel causes no division by zero.
    mean, std = pixels.mean((0, 1, 2), keepdims=True), pixels.std((0, 1, 2), keepdims=True) + 1.0

    @jax.jit
    def forward(params: Any, images: jax.Array) -> Any:
        return net.apply(params, (images.astype(jnp.float32) - mean) / std)

    key = _key(net, seed, steps, train, test, train_labels, test_labels)
    folder = Path(cache_dir) if cache_dir else cache.folder()
    file = folder / f"classifier-{key}.npz"
    like = jax.eval_shape(net.init, jax.random.key(seed), jnp.zeros((1, *shape)))
    kept = _load(file, like, warn)
    if kept is None:
        say(f"training the {dataset.name} classifier for features, {steps} steps")
        params = _train(net, forward, train, train_labels, seed, steps, say)
    else:
        params, accuracy = kept

    network = f"{dataset.name} classifier"
    features = Features(network, key, network, functools.partial(forward, params), shape)
    if kept is None:
        accuracy = float((features.logits(test).argmax(1) == test_labels).mean())
        _save(file, params, accuracy, warn)
    name = f"{network}, {100 * accuracy:.1f} % held-out accuracy"
    say(f"{name}{' (cached from an earlier run)' if kept else ''}")
    return dataclasses.replace(features, name=name, accuracy=accuracy)


def _checked(dataset: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    name = getattr(dataset, "name", "this data set")
    fields = [getattr(dataset, field, None) for field in ("train", "test", "train_labels", "test_labels")]
    if not is_labelled(dataset):
        raise UsageError(
            f"{name} has no labels, and this classifier needs some: give train_labels and test_labels, "
            "or use sliced_wasserstein or mmd, which need none"
        )
    if any(field is None for field in fields):
        raise UsageError(f"{name} has no held-out images to measure the classifier on: hold some out")
    train, test, train_labels, test_labels = (np.asarray(field) for field in fields)
    for images, labels in ((train, train_labels), (test, test_labels)):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise UsageError(f"{name} is no set of uint8 images [N, H, W, C]: it holds {images.dtype} {images.shape}")
        if labels.shape != images.shape[:1] or not len(labels) or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise UsageError(
                f"{name} has labels that are not one class, counted from 0, for each of {len(images)} images"
            )
    return train, test, train_labels.astype(np.int32), test_labels.astype(np.int32)


def _key(net: Any, seed: int, steps: int, *arrays: np.ndarray) -> str:
    settings = [_VERSION, net.classes, net.width, net.features, seed, steps]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for array in arrays:
        digest.update(str((array.shape, array.dtype)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _train(
    net: Any,
    forward: Callable,
    train: np.ndarray,
    labels: np.ndarray,
    seed: int,
    steps: int,
    say: Callable[[str], None],
) -> Any:
    import jax
    import jax.numpy as jnp
    import optax

    params = jax.jit(net.init)(jax.random.key(seed), jnp.zeros((1, *train.shape[1:])))
    warm = max(1, steps // 4)
    up, down = optax.linear_schedule(4e-4, 4e-3, warm), optax.linear_schedule(4e-3, 0.0, steps - warm)
    optimizer = optax.adam(optax.join_schedules([up, down], [warm]), b2=0.99)

    @jax.jit
    def step(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any, jax.Array]:
        def loss(params: Any) -> jax.Array:
            logits, _ = forward(params, images)
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()

        value, grads = jax.value_and_grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer's power
            updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    rng = np.random.default_rng(seed)
    state = optimizer.init(params)
    batch = min(_BATCH, len(train))
    order = np.empty(0, np.int64)
    for i in range(steps):
        if len(order) < batch:
            order = rng.permutation(len(train))
        rows, order = order[:batch], order[batch:]
        params, state, value = step(params, state, train[rows], labels[rows])
        if (i + 1) % 100 == 0:
            say(f"classifier for features: step {i + 1} of {steps}, cross-entropy {float(value):.3f}")
    return params


def _load(file: Path, like: Any, warn: Callable[[str], None]) -> tuple[Any, float] | None:
    """Parameters and accuracy from the cache; None if there is no usable file."""
    import jax

    try:
        # Opened here: np.load leaves a damaged file open.
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as kept:
            leaves = {name: kept[name] for name in kept.files}
        params = jax.tree_util.tree_map_with_path(lambda path, _: leaves[_name(path)], like)
        fits = jax.tree.map(
            lambda a, b: a.shape == b.shape and a.dtype == b.dtype and np.isfinite(a).all(), params, like
        )
        if not all(jax.tree.leaves(fits)):
            raise ValueError("its arrays do not fit the classifier")
        return jax.device_put(params), float(leaves["accuracy"])
    except FileNotFoundError:
        return None
    # What a damaged zip file raises depends on where the damage is.
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        warn(f"the cached classifier {file} cannot be used ({type(error).__name__}), and is made again")
        return None


def _save(file: Path, params: Any, accuracy: float, warn: Callable[[str], None]) -> None:
    """Write the whole file under another name, then rename it: a reader finds the whole file or none."""
    import jax

    leaves: dict[str, Any] = {
        _name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    leaves["accuracy"] = np.float64(accuracy)
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, **leaves)
        os.replace(temporary, file)
    except OSError as error:
        warn(
            f"the classifier for features cannot be cached in {file.parent} ({error.strerror}): it is trained again "
            "every time"
        )
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _name(path: Any) -> str:
    import jax

    return jax.tree_util.keystr(path, simple=True, separator="/")
