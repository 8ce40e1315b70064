"""EfficientNet-Lite0 gives the features and logits of timm, from the weights of the package."""

import importlib.metadata
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from reference.features import FILE, KEPT, in_their_order, pictures, states
from refusal import refused
from torch_frames import saved

from scoregen.metrics import efficientnet, efficientnet_features, pretrained
from scoregen.nets import EfficientNetLite0

SHAPES = pretrained.arrays_of(EfficientNetLite0(), efficientnet._theirs, 224)


def packaged():
    """The features with the real weights, if their package is installed."""
    try:
        importlib.metadata.files(efficientnet.PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{efficientnet.PACKAGE} is not installed")
    return efficientnet_features()


def test_the_network_has_the_arrays_of_the_file():
    """48 convolutions and 48 norms of 4 arrays, and the last layer: the file's 296 tensors but 48 counts of batches."""
    norms = {name for name in SHAPES if name.endswith("running_var")}
    assert len(norms) == 49 and len(SHAPES) == 49 * 5 + 2
    assert len(SHAPES) + len(norms) == 296
    assert SHAPES["_blocks.1._expand_conv.weight"] == (96, 16, 1, 1)
    assert SHAPES["_blocks.15._depthwise_conv.weight"] == (1152, 1, 3, 3)
    assert SHAPES["_conv_head.weight"] == (1280, 320, 1, 1) and SHAPES["_fc.weight"] == (1000, 1280)


def test_the_input():
    """(g - 127) / 128 of the whole picture, enlarged or made smaller to 224x224, with grey repeated."""
    ramp = np.broadcast_to(np.arange(8, dtype=np.uint8)[None, None, :, None] * 30, (1, 6, 8, 1))
    x = np.asarray(efficientnet.INPUT(jnp.asarray(ramp)))
    assert x.shape == (1, 224, 224, 3)
    position = np.clip((np.arange(224) + 0.5) * 8 / 224 - 0.5, 0, 7)
    for channel in range(3):
        np.testing.assert_allclose(x[0, 100, :, channel], (30 * position - 127) / 128, atol=1e-5)
    checked = np.indices((448, 448)).sum(0)[None, :, :, None] % 2 * 254
    np.testing.assert_allclose(efficientnet.INPUT(jnp.asarray(checked.astype(np.uint8)))[0, 1:-1, 1:-1], 0, atol=1e-2)


@pytest.mark.slow
def test_features_and_logits_are_timm_s(tmp_path):
    """Against numbers that timm made of the same random weights (tests/reference/features.py)."""
    features = efficientnet_features(saved(tmp_path / "a.pth", states()[1]))
    with np.load(FILE) as file:
        known = dict(file)
    assert features.origin().titled("Frechet distance") == "Frechet distance, EfficientNet-Lite0 with other weights"
    for name, image in pictures().items():
        found = features.outputs(image)
        for kind, got in (("features", found.features), ("logits", found.logits[:, KEPT])):
            want = known[f"efficientnet/{name}/{kind}"]
            np.testing.assert_allclose(got, want, atol=1e-4 * want.std(), rtol=1e-4)


@pytest.mark.slow
def test_the_real_weights_know_a_uniform():
    """The portrait of an admiral that comes with Matplotlib is class 652 of ImageNet, military uniform."""
    import matplotlib.cbook
    import matplotlib.image

    features = packaged()
    assert features.name == "EfficientNet-Lite0 (antialiased resizing), sha256 57934424"
    assert features.origin().titled("Frechet distance") == "Frechet distance, EfficientNet-Lite0"
    image = matplotlib.image.imread(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))[None]
    rows, logits = features.outputs(image)
    assert rows.shape == (1, 1280) and logits.argmax() == 652
    chance = np.exp(logits[0] - logits.max())
    assert chance[652] / chance.sum() > 0.3


@pytest.mark.slow
def test_timm_live():
    """With the real weights, for three pictures."""
    features = packaged()
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    from reference.features import timm_lite0

    state = torch.load(efficientnet.packaged(), weights_only=True)
    outputs = timm_lite0(in_their_order({name: state[name].numpy() for name in SHAPES}))
    for image in pictures().values():
        for got, want in zip(features.outputs(image), outputs(image), strict=True):
            np.testing.assert_allclose(got, want, atol=2e-5 * want.std(), rtol=1e-5)


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch, tmp_path):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    refused(efficientnet_features, "EfficientNet-Lite0 are missing", "pip install 'scoregen[features]'")
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    refused(efficientnet_features, "pip install 'scoregen[features]'")
    refused(lambda: efficientnet_features(tmp_path / "none.pth"), "none.pth", "No such file")


def test_the_package_is_found_and_not_imported(tmp_path):
    """A stand-in, whose import fails: the file is found beside it."""
    folder = tmp_path / efficientnet.PACKAGE.replace("-", "_")
    info = tmp_path / f"{folder.name}-0.1.0.dist-info"
    (folder / "models").mkdir(parents=True)
    info.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('no PyTorch here')")
    (folder / "models" / "weights.pth").touch()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {efficientnet.PACKAGE}\nVersion: 0.1.0\n")
    (info / "RECORD").write_text(f"{folder.name}/__init__.py,,\n{folder.name}/models/weights.pth,,\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from scoregen.metrics.efficientnet import packaged\n"
        f"print(packaged(), {folder.name!r} in sys.modules, 'torch' in sys.modules, 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(folder / "models" / "weights.pth"), "False", "False", "False"]
