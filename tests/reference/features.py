"""Random weights and small pictures for the networks of features, and what other libraries make of them.

    python tests/reference/features.py

writes tests/data/features.npz with pytorch-fid, torch-fidelity and timm (the extra `interop`). Weights and pictures are
made here from NumPy alone, so the tests compare with the file without these libraries.
"""

import sys
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

FILE = Path(__file__).parents[1] / "data" / "features.npz"
KEPT = slice(None, None, 4)  # every fourth logit is enough


def random_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A state dict of these shapes. Layers keep the scale of their inputs, and no statistic is 0 or 1."""
    state = {}
    for name, shape in shapes.items():
        draw = np.random.default_rng(zlib.crc32(name.encode())).random(shape, np.float32)
        if len(shape) > 1:
            state[name] = (2 * draw - 1) * np.float32((6 / np.prod(shape[1:])) ** 0.5)
        elif name.endswith(("running_var", "weight")):
            state[name] = draw + np.float32(0.5)
        else:
            state[name] = draw - np.float32(0.5)
    return state


def pictures() -> dict[str, np.ndarray]:
    """uint8 [1, H, W, C]: a small one, a grey one that is not square, and one larger than the networks' inputs."""
    found = {}
    for name, (height, width, channels) in {"small": (32, 32, 3), "grey": (40, 24, 1), "large": (330, 412, 3)}.items():
        i, j, c = np.ogrid[:height, :width, :channels]
        smooth = (i * i // 8 + 3 * j * (c + 1)) % 256
        noise = np.random.default_rng(height).integers(0, 256, (height, width, channels))
        found[name] = ((smooth * 3 + noise) // 4).astype(np.uint8)[None]
    return found


def rgb(image: np.ndarray):
    """A picture as PyTorch's uint8 [1, 3, H, W]."""
    import torch

    return torch.tensor(np.repeat(image, 3, 3) if image.shape[3] == 1 else image).permute(0, 3, 1, 2)


def tensors(state: Mapping[str, np.ndarray]) -> dict:
    import torch

    return {name: torch.tensor(array) for name, array in state.items()}


def pytorch_fid(state: Mapping[str, np.ndarray]):
    """picture -> (features, logits), by pytorch-fid. It gives no logits: its own last layer is applied here."""
    import torch
    from pytorch_fid import inception

    inception.load_state_dict_from_url = lambda *_, **__: tensors(state)
    net, head = inception.InceptionV3().eval(), inception.fid_inception_v3().fc

    def outputs(image):
        with torch.no_grad():
            features = net(rgb(image).float() / 255)[0][:, :, 0, 0]  # the division is that of ToTensor
            return features.numpy(), head(features).numpy()

    return outputs


def torch_fidelity(state: Mapping[str, np.ndarray]):
    """picture -> (features, logits), by torch-fidelity."""
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/weights.pth"
        torch.save(tensors(state), path, _use_new_zipfile_serialization=False)
        net = FeatureExtractorInceptionV3("inception", ["2048", "logits"], feature_extractor_weights_path=path)

    def outputs(image):
        with torch.no_grad():
            return tuple(found.numpy() for found in net(rgb(image)))

    return outputs


def timm_lite0(state: Mapping[str, np.ndarray]):
    """picture -> (features, logits), by timm. PyTorch resizes in float64, since its float32 loses digits."""
    import timm
    import torch

    net = timm.create_model("tf_efficientnet_lite0").eval()
    theirs = {name: array for name, array in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert [array.shape for array in theirs.values()] == [array.shape for array in state.values()]
    net.load_state_dict(dict(zip(theirs, tensors(state).values(), strict=True)), strict=False)

    def outputs(image):
        x = rgb(image).double()
        x = torch.nn.functional.interpolate(x, size=(224, 224), mode="bilinear", antialias=True, align_corners=False)
        with torch.no_grad():
            maps = net.forward_features(((x - 127) / 128).float())
            return maps.mean((2, 3)).numpy(), net.forward_head(maps).numpy()

    return outputs


def in_their_order(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict of EfficientNet-Lite0 in the order of its layers."""

    def place(name: str) -> tuple[int, ...]:
        layer, _, last = name.rpartition(".")
        outer = ("_conv_stem", "_bn0", "_blocks", "_conv_head", "_bn1", "_fc")
        inner = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
        group, *block = layer.split(".")
        number, part = (int(block[0]), inner.index(block[1])) if block else (0, 0)
        return outer.index(group), number, part, ("weight", "bias", "running_mean", "running_var").index(last)

    return {name: state[name] for name in sorted(state, key=place)}


def states() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The random weights of Inception and of EfficientNet-Lite0."""
    from scoregen.metrics import efficientnet, inception
    from scoregen.metrics.pretrained import arrays_of
    from scoregen.nets import EfficientNetLite0, Inception

    return (
        random_state(arrays_of(Inception(), inception._theirs, 299)),
        random_state(arrays_of(EfficientNetLite0(), efficientnet._theirs, 224)),
    )


def main() -> None:
    first, second = states()
    made = {
        "pytorch-fid": pytorch_fid(first),
        "torch-fidelity": torch_fidelity(first),
        "efficientnet": timm_lite0(in_their_order(second)),
    }
    found = {}
    for library, outputs in made.items():
        for name, image in pictures().items():
            features, logits = outputs(image)
            found[f"{library}/{name}/features"], found[f"{library}/{name}/logits"] = features, logits[:, KEPT]
            print(f"{library}, {name}: features {features.std():.3f}, logits {logits.std():.3f} (std)")
    np.savez_compressed(FILE, allow_pickle=False, **found)
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
