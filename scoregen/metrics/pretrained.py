"""Features of pretrained image classifiers, with weights from a file of PyTorch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scoregen.errors import UsageError
from scoregen.files import sha256
from scoregen.metrics.features import Features
from scoregen.metrics.resize import resized
from scoregen.torch_file import Tensor, TorchFile

EPS = 1e-3  # of every batch norm, in both networks
STATISTICS = ("weight", "bias", "running_mean", "running_var")
_BATCH = 16  # Inception takes 50 MB for an image
_VERSION = 1  # part of the key: raise it whenever the same images and weights would give other features

Names = Callable[[str], tuple[str, str]]


class Input(NamedTuple):
    """How images become the input of a network.

    Attributes:
        name: for reports and for the key.
        size: rows and columns of the input.
        weights: the resizing, a function of `metrics.resize`.
        before: what is done with the grey levels, from 0 to 255, before the resizing.
        after: what is done with the resized image.
    """

    name: str
    size: int
    weights: Callable[[int, int], np.ndarray]
    before: Callable[[Any], Any]
    after: Callable[[Any], Any]

    def __call__(self, images: Any) -> Any:
        """uint8 images [B, H, W, 1 or 3] -> float32 [B, size, size, 3]; grey is repeated."""
        import jax.numpy as jnp

        rows, columns = (self.weights(n, self.size) for n in images.shape[1:3])
        x = self.after(resized(self.before(images.astype(jnp.float32)), rows, columns))
        return jnp.broadcast_to(x, (*x.shape[:3], 3))


def pretrained_features(net: Any, network: str, file: Path, theirs: Names, taken: Input, published: str) -> Features:
    """Features of a network of `scoregen.nets` with the weights in a file.

    Args:
        net: the network: images [B, size, size, 3] -> (logits, features).
        network: its name.
        file: a state dict, saved by PyTorch.
        theirs: the name of one of our layers, such as "block0.expand" -> the names of its convolution and of its batch
            norm in the file, of which the second is empty for the last layer.
        taken: how images become the input.
        published: the SHA-256 of the published weights.

    Raises:
        UsageError: if the file cannot be read, or holds other weights.
    """
    import jax

    params = jax.device_put({"params": _parameters(net, network, file, theirs, taken.size)})

    @jax.jit
    def forward(params: Any, images: jax.Array) -> Any:
        return net.apply(params, taken(images))

    digest = sha256(file)
    settings = json.dumps([_VERSION, network, taken.name, digest])
    weights = f"sha256 {digest[:8]}" + ", other weights than the published ones" * (digest != published)
    return Features(
        name=f"{network} ({taken.name}), {weights}",
        key=hashlib.sha256(settings.encode()).hexdigest()[:16],
        network=network if digest == published else f"{network} with other weights",
        resize=taken.name,
        batch=_BATCH,
        _apply=lambda images: forward(params, images),
    )


def arrays_of(net: Any, theirs: Names, size: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the arrays that the file of a network has to hold; see `pretrained_features`."""
    found: dict[str, tuple[int, ...]] = {}
    for layer, (*window, inputs, outputs) in _layers(net, size).items():
        name, norm = theirs(layer)
        found[f"{name}.weight"] = (outputs, inputs, *window)
        found |= {f"{norm}.{part}": (outputs,) for part in STATISTICS} if norm else {f"{name}.bias": (outputs,)}
    return found


def _parameters(net: Any, network: str, file: Path, theirs: Names, size: int) -> dict[str, Any]:
    """The network's parameters, nested, from the state dict in the file."""
    with TorchFile(file) as opened:
        state = _checked(file, network, opened.value, arrays_of(net, theirs, size))
        arrays = {name: opened.read(tensor) for name, tensor in state.items()}
    least = {name: 0 if name.endswith("running_var") else -np.inf for name in arrays}
    if bad := [name for name, a in arrays.items() if not np.isfinite(a).all() or (a < least[name]).any()]:
        raise UsageError(f"{file}: {len(bad)} arrays are not finite, or are negative variances, the first {bad[0]}")
    params: dict[str, Any] = {}
    for layer, kernel in _layers(net, size).items():
        *outer, last = layer.split(".")
        node = params
        for part in outer:
            node = node.setdefault(part, {})
        node[last] = dict(zip(("kernel", "bias"), _layer(arrays, *theirs(layer), len(kernel)), strict=True))
    return params


def _layers(net: Any, size: int) -> dict[str, tuple[int, ...]]:
    """Name of each layer, such as "block0.expand" -> shape of its kernel."""
    import jax

    like = jax.eval_shape(net.init, jax.random.key(0), np.zeros((1, size, size, 3), np.float32))["params"]
    leaves = jax.tree_util.tree_leaves_with_path(like)
    names = {".".join(key.key for key in path): leaf.shape for path, leaf in leaves}
    return {name.removesuffix(".kernel"): shape for name, shape in names.items() if name.endswith(".kernel")}


def _layer(arrays: Mapping[str, np.ndarray], layer: str, norm: str, axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias."""
    from scoregen.nets.pretrained import folded

    order = (2, 3, 1, 0) if axes == 4 else (1, 0)
    kernel = arrays[f"{layer}.weight"].transpose(order)
    if not norm:
        return kernel.astype(np.float32), arrays[f"{layer}.bias"].astype(np.float32)
    gamma, beta, mean, var = (arrays[f"{norm}.{name}"] for name in STATISTICS)
    return folded(kernel, gamma, beta, mean, var, EPS)


def _checked(file: Path, network: str, state: Any, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The arrays that the network needs. Everything that does not fit is said at once."""
    if not isinstance(state, dict):
        raise UsageError(f"{file} holds no state dict")
    found = {name: tensor for name, tensor in state.items() if not str(name).endswith(".num_batches_tracked")}
    missing = [name for name in wanted if name not in found]
    unknown = [str(name)[:80] for name in found if name not in wanted]
    misfits = [
        name
        for name, shape in wanted.items()
        if name in found
        and (type(found[name]) is not Tensor or found[name].shape != shape or found[name].dtype.kind != "f")
    ]
    problems = [
        f"{len(names)} of its arrays {what}, the first {names[0]}"
        for what, names in (("are missing", missing), ("are unknown", unknown), ("have another shape or type", misfits))
        if names
    ]
    if problems:
        raise UsageError(f"{file} does not hold the weights of {network}: {'; '.join(problems)}")
    return {name: found[name] for name in wanted}
