"""The Inception network gives the features and logits of pytorch-fid and torch-fidelity, from the user's own file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.features import FILE, KEPT, pictures, random_state, states
from refusal import refused
from torch_frames import saved

from scoregen.files import sha256
from scoregen.metrics import FEATURES, inception, inception_features, pretrained
from scoregen.metrics.features import Features
from scoregen.metrics.resize import antialiased, pytorch, resized, tensorflow1
from scoregen.nets import Inception
from scoregen.nets.inception import BLOCKS, Mixed
from scoregen.nets.pretrained import Depthwise, folded, max_pool, mean_pool

SHAPES = pretrained.arrays_of(Inception(), inception._theirs, 299)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights, in the layout of the published one."""
    return saved(tmp_path_factory.mktemp("inception") / inception.FILES[0], states()[0])


# --- the layers


def neighbours(x, i, j, outside):
    """The 3x3 pixels around one of an image [H, W]."""
    return np.pad(x, 1, constant_values=outside)[i : i + 3, j : j + 3]


def test_pools_by_hand():
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    mean, most, half = (np.asarray(y) for y in (mean_pool(x), max_pool(x), max_pool(x, stride=2)))
    assert mean.shape == most.shape == x.shape and half.shape == (2, 2, 1, 3)
    for i, j in np.ndindex(5, 4):
        around = [neighbours(x[1, :, :, 2], i, j, np.nan)]
        np.testing.assert_allclose(mean[1, i, j, 2], np.nanmean(around), rtol=1e-5)
        np.testing.assert_allclose(most[1, i, j, 2], np.nanmax(around))
    np.testing.assert_allclose(half[0, 1, 0, 1], x[0, 2:5, 0:3, 1].max())


@pytest.mark.quick(2)
@pytest.mark.parametrize(("window", "stride", "size"), [(3, 1, 5), (3, 2, 6), (3, 2, 5), (5, 2, 8), (5, 1, 4)])
def test_the_depthwise_convolution_is_xla_s(window, stride, size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, size, size + 1, 3)).astype(np.float32)
    kernel = rng.normal(size=(window, window, 1, 3)).astype(np.float32)
    bias = rng.normal(size=3).astype(np.float32)
    found = Depthwise(window, stride).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    axes = ("NHWC", "HWIO", "NHWC")
    exact = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=axes, feature_group_count=3, precision="highest"
    )
    np.testing.assert_allclose(found, exact + bias.reshape(1, 1, 1, 3), rtol=1e-4, atol=1e-5)


def test_a_folded_norm_is_the_norm_of_the_convolution():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(6, 4)), rng.normal(size=(1, 1, 4, 3))
    gamma, beta, mean = rng.normal(size=(3, 3))
    var = rng.random(3)
    exact = gamma * (x @ kernel[0, 0] - mean) / np.sqrt(var + 1e-3) + beta
    found, bias = folded(kernel, gamma, beta, mean, var, 1e-3)
    assert found.dtype == bias.dtype == np.float32
    np.testing.assert_allclose(x @ found[0, 0] + bias, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", ["Mixed_7c", "Mixed_5c", "Mixed_7b"])
def test_a_block_by_hand(name):
    """Every branch, from random weights, on 4x3 pixels with NumPy: also the two branches that split, and both pools."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3, 5)).astype(np.float32)
    block = Mixed(BLOCKS[name])
    like = jax.eval_shape(block.init, jax.random.key(0), x[None])["params"]
    params = jax.tree.map(lambda a: (rng.normal(size=a.shape) / 8).astype(np.float32), like)

    def conv(layer, x):
        kernel, bias = params[layer]["kernel"], params[layer]["bias"]
        h, w = kernel.shape[:2]
        padded = np.pad(x, ((h // 2, h // 2), (w // 2, w // 2), (0, 0)))
        out = np.stack([np.tensordot(padded[i : i + h, j : j + w], kernel, 3) for i, j in np.ndindex(4, 3)])
        return np.maximum(out.reshape(4, 3, -1) + bias, 0)

    def pool(x):
        join = np.nanmax if name == "Mixed_7c" else np.nanmean
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=np.nan)
        return np.stack([join(padded[i : i + 3, j : j + 3], (0, 1)) for i, j in np.ndindex(4, 3)]).reshape(x.shape)

    def chain(x, *layers):
        for layer in layers:
            x = conv(layer, x)
        return x

    if name == "Mixed_5c":
        parts = [
            chain(x, "branch1x1"),
            chain(x, "branch5x5_1", "branch5x5_2"),
            chain(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
        ]
    else:
        first, second = chain(x, "branch3x3_1"), chain(x, "branch3x3dbl_1", "branch3x3dbl_2")
        parts = [
            chain(x, "branch1x1"),
            *(conv(f"branch3x3_2{side}", first) for side in "ab"),
            *(conv(f"branch3x3dbl_3{side}", second) for side in "ab"),
        ]
    exact = np.concatenate([*parts, chain(pool(x), "branch_pool")], axis=-1)
    np.testing.assert_allclose(block.apply({"params": params}, x[None])[0], exact, rtol=1e-4, atol=1e-4)


def test_the_network_has_the_arrays_of_the_published_file():
    """94 convolutions with their norms, and the last layer. Their numbers are all but 87 kB of the 95,628,359 bytes."""
    assert len(SHAPES) == 94 * 5 + 2
    assert sum(int(np.prod(shape)) for shape in SHAPES.values()) == 23_885_392
    assert SHAPES["Mixed_6b.branch7x7_2.conv.weight"] == (128, 128, 1, 7)
    assert SHAPES["Mixed_7a.branch7x7x3_3.conv.weight"] == (192, 192, 7, 1)
    assert SHAPES["Mixed_7c.branch_pool.bn.running_var"] == (192,)
    assert (SHAPES["fc.weight"], SHAPES["fc.bias"]) == ((1008, 2048), (1008,))


# --- resizing


@pytest.mark.parametrize(("n", "m"), [(32, 299), (299, 299), (512, 299), (1, 7), (24, 224), (640, 224)])
def test_the_weights_of_resizing(n, m):
    """PyTorch and TensorFlow 1 read two neighbours at (i + 1/2) n / m - 1/2 and at i n / m, by their own formulas."""
    signal = np.random.default_rng(0).normal(size=n)
    for convention, position in (
        (pytorch, np.maximum((np.arange(m) + 0.5) * n / m - 0.5, 0)),
        (tensorflow1, np.arange(m) * n / m),
    ):
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, n - 1)
        exact = signal[low] + (signal[high] - signal[low]) * (position - low)
        np.testing.assert_allclose(convention(n, m) @ signal, exact, atol=1e-4)
    if n == m:
        np.testing.assert_array_equal(pytorch(n, m), np.eye(n))
        np.testing.assert_array_equal(tensorflow1(n, m), np.eye(n))
    # It is the same as PyTorch's where nothing is made smaller.
    smooth = antialiased(n, m)
    assert (np.count_nonzero(smooth, 1) >= n // m).all()
    if n <= m:
        np.testing.assert_allclose(smooth, pytorch(n, m), atol=1e-5)
    np.testing.assert_allclose(smooth.sum(1), 1, atol=1e-6)


def test_antialiased_resizing_is_jax_s():
    x = np.random.default_rng(0).random((2, 50, 20, 3)).astype(np.float32)
    exact = jax.image.resize(x, (2, 30, 30, 3), "linear", antialias=True)
    np.testing.assert_allclose(resized(x, antialiased(50, 30), antialiased(20, 30)), exact, atol=1e-5)


def test_the_inputs_of_both_conventions():
    """299x299 pixels are not resized: black, mid grey and white become what the libraries make of them."""
    image = np.zeros((1, 299, 299, 1), np.uint8)
    image[0, 0, :3, 0] = 0, 128, 255
    for name, exact in {"pytorch-fid": [-1, 2 * 128 / 255 - 1, 1], "torch-fidelity": [-1, 0, 127 / 128]}.items():
        x = np.asarray(inception.INPUTS[name](jnp.asarray(image)))
        assert x.shape == (1, 299, 299, 3) and x.dtype == np.float32
        for channel in range(3):
            np.testing.assert_allclose(x[0, 0, :3, channel], exact, atol=1e-6)


# --- the whole network


@pytest.mark.slow
@pytest.mark.parametrize("resize", inception.INPUTS)
def test_features_and_logits_are_the_libraries(weights, resize):
    """Against numbers that pytorch-fid and torch-fidelity made of the same weights (tests/reference/features.py).

    In float32 the features differ by up to 5e-6 of their standard deviation, and the libraries by 0.07 to 0.1.
    """
    features = inception_features(weights, resize=resize)
    with np.load(FILE) as file:
        known = dict(file)
    for name, image in pictures().items():
        found = features.outputs(image)
        for kind, got in (("features", found.features), ("logits", found.logits[:, KEPT])):
            want = known[f"{resize}/{name}/{kind}"]
            np.testing.assert_allclose(got, want, atol=2e-5 * want.std(), rtol=1e-5)
    assert features.key != inception_features(weights, resize=next(n for n in inception.INPUTS if n != resize)).key


@pytest.mark.slow
def test_the_libraries_live(weights):
    """The same, with the libraries themselves and a picture of another size."""
    pytest.importorskip("torch")
    pytest.importorskip("pytorch_fid")
    pytest.importorskip("torch_fidelity")
    from reference.features import pytorch_fid, torch_fidelity

    image = np.random.default_rng(5).integers(0, 256, (2, 21, 47, 3)).astype(np.uint8)
    for resize, library in (("pytorch-fid", pytorch_fid), ("torch-fidelity", torch_fidelity)):
        for got, want in zip(
            inception_features(weights, resize=resize).outputs(image), library(states()[0])(image), strict=True
        ):
            np.testing.assert_allclose(got, want, atol=2e-5 * want.std(), rtol=1e-5)


@pytest.mark.slow
def test_features_of_grey_images(weights):
    """The name, the types, and grey images as those whose channels are equal."""
    features = inception_features(weights)
    digest = sha256(weights)
    assert features.name == (
        f"Inception (pytorch-fid resizing), sha256 {digest[:8]}, other weights than the published ones"
    )
    assert features.origin().titled("Frechet distance") == "Frechet distance, Inception with other weights"
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1)).astype(np.uint8)
    rows, logits = features.outputs(image)
    assert rows.shape == (1, 2048) and logits.shape == (1, 1008) and rows.dtype == logits.dtype == np.float32
    np.testing.assert_allclose(features(image.repeat(3, axis=3)), rows, rtol=1e-4, atol=1e-4)


# --- the file


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No file is set, and PyTorch's cache is empty."""
    monkeypatch.delenv(inception.VARIABLE, raising=False)
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_without_the_file_the_message_says_where_to_get_it(nowhere, monkeypatch):
    parts = (inception.FILES[0], "github.com/mseitzer/pytorch-fid", "SCOREGEN_INCEPTION")
    refused(inception_features, *parts, nowhere / "cache" / "torch" / "hub" / "checkpoints")
    monkeypatch.setenv("TORCH_HOME", str(nowhere / "home"))
    refused(inception_features, *parts, nowhere / "home" / "hub" / "checkpoints")
    monkeypatch.setenv(inception.VARIABLE, str(nowhere / "set.pth"))
    refused(inception_features, "SCOREGEN_INCEPTION names", nowhere / "set.pth", *parts[:2])
    refused(lambda: inception_features(nowhere / "given.pth"), nowhere / "given.pth", *parts[:2])
    with pytest.raises(ValueError, match="'pytorch-fid' or 'torch-fidelity' is needed"):
        inception_features(resize="bicubic")
    with pytest.raises(TypeError, match="weights=3"):
        inception_features(3)


def test_the_file_is_found(nowhere, monkeypatch):
    """An argument is taken before the variable, the variable before the caches, and either name of the file."""
    folder = nowhere / "cache" / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    for name in reversed(inception.FILES):
        (folder / name).touch()
        assert inception._file(None) == folder / name
    (nowhere / "set.pth").touch()
    monkeypatch.setenv(inception.VARIABLE, str(nowhere / "set.pth"))
    assert inception._file(None) == nowhere / "set.pth"
    assert inception._file(folder / name) == folder / name


def test_other_files_are_refused(nowhere):
    """Each kind of mistake is said, all at once, and no pickle is run."""
    state = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items() if name.startswith(("fc", "Conv"))}
    state["Conv2d_1a_3x3.conv.weight"] = np.zeros((32, 3, 5, 5), np.float32)
    state["Conv2d_1a_3x3.bn.weight"] = np.zeros(32, np.int64)
    state["AuxLogits.fc.bias"] = np.zeros(1000, np.float32)
    path = saved(nowhere / "other.pth", state)
    message = refused(
        lambda: inception_features(path),
        "other.pth does not hold the weights of Inception",
        "1 of its arrays are unknown, the first AuxLogits.fc.bias",
        "2 of its arrays have another shape or type, the first Conv2d_1a_3x3.conv.weight",
    )
    assert f"{len(SHAPES) - len(state) + 1} of its arrays are missing, the first Mixed" in message
    saved(path, [1, 2])
    refused(lambda: inception_features(path), "no state dict")
    path.write_bytes(path.read_bytes()[:-3])
    refused(lambda: inception_features(path), "other.pth")


def test_weights_that_are_not_finite_are_refused(nowhere):
    net, theirs = Inception(), inception._theirs
    state = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    state["fc.bias"][3] = np.nan
    path = saved(nowhere / "bad.pth", state | {"fc.num_batches_tracked": np.array(3)})
    refused(lambda: pretrained._parameters(net, "Inception", path, theirs, 299), "1 arrays", "the first fc.bias")
    state["fc.bias"][3] = 0
    state["Mixed_7c.branch_pool.bn.running_var"][1] = -1
    path = saved(path, state)
    refused(lambda: pretrained._parameters(net, "Inception", path, theirs, 299), "1 arrays", "Mixed_7c.branch_pool.bn")


def test_only_the_published_weights_are_called_fid(nowhere, monkeypatch):
    """The hash of the file decides. The network is not evaluated here."""
    path = nowhere / "a.pth"
    path.write_bytes(b"weights")
    monkeypatch.setattr(pretrained, "_parameters", lambda *_: {})
    monkeypatch.setattr(pretrained, "sha256", lambda _: inception.PUBLISHED)
    made = {resize: inception_features(path, resize=resize) for resize in inception.INPUTS}
    assert all(features.origin().titled("Frechet distance") == "FID" for features in made.values())
    assert made["pytorch-fid"].name == "Inception (pytorch-fid resizing), sha256 6726825d"
    assert made["torch-fidelity"].name == "Inception (torch-fidelity resizing), sha256 6726825d"
    monkeypatch.setattr(pretrained, "sha256", lambda _: "0" * 64)
    other = inception_features(path)
    assert "FID" not in other.origin().titled("Frechet distance")
    assert len({features.key for features in (*made.values(), other)}) == 3


# --- the interface of all features


def counting(batch=4, shape=None):
    """Features that are the sum of an image and its negative as logits, and the sizes of the batches that were seen."""
    seen = []

    def apply(images):
        seen.append(images.shape)
        sums = images.sum((1, 2, 3), dtype=np.float32)[:, None]
        return -sums, sums

    return Features("sums", "0", "sum", apply, shape, batch), seen


def test_batches_have_one_shape_and_rows_keep_their_order():
    features, seen = counting()
    images = np.arange(11 * 2 * 3, dtype=np.uint8).reshape(11, 2, 3, 1)
    sums = images.sum((1, 2, 3), dtype=np.float32)[:, None]
    np.testing.assert_array_equal(features(images), sums)
    assert seen == [(4, 2, 3, 1)] * 3
    seen.clear()
    parts = [images[:1], images[1:8], images[8:8], images[8:]]
    found = features.outputs(iter(parts))
    np.testing.assert_array_equal(found.features, sums)
    np.testing.assert_array_equal(found.logits, -sums)
    assert seen == [(4, 2, 3, 1)] * 3
    seen.clear()
    np.testing.assert_array_equal(features.logits(images[:3]), -sums[:3])
    np.testing.assert_array_equal(features(images[:1]), sums[:1])
    assert seen == [(4, 2, 3, 1), (1, 2, 3, 1)]  # few images need no whole batch
    assert features(images[:0]).shape == (0, 1)
    assert features.outputs([images[:0]], logits=False)[0].shape == (0, 1)
    seen.clear()
    alone = features.outputs(images, logits=False)
    np.testing.assert_array_equal(alone.features, sums)
    assert alone.logits is None
    for call in (features, features.logits, features.outputs, lambda parts: list(features.stream(parts))):
        with pytest.raises(ValueError, match="there are no images: an iterable of at least one array is needed"):
            call(iter(()))
    seen.clear()
    wide = np.zeros((2, 2, 5, 1), np.uint8)
    assert [len(part.features) for part in features.stream([images[:5], wide])] == [4, 1, 2]
    assert seen == [(4, 2, 3, 1), (4, 2, 3, 1), (4, 2, 5, 1)]


def test_only_one_batch_is_read_at_a_time():
    features, seen = counting(batch=2)
    read = []

    def images():
        for i in range(4):
            read.append(i)
            yield np.zeros((2, 2, 2, 3), np.uint8)

    stream = features.stream(images())
    next(stream)
    assert (read, len(seen)) == ([0], 1)


@pytest.mark.parametrize(
    ("shape", "images", "message"),
    [
        (None, np.zeros((2, 4, 4, 3)), r"\[N, H, W, 1 or 3\] are needed, not float64 \(2, 4, 4, 3\)"),
        (None, np.zeros((2, 4, 4, 4), np.uint8), "1 or 3"),
        (None, np.zeros((4, 4, 3), np.uint8), "1 or 3"),
        (None, np.zeros((2, 0, 4, 3), np.uint8), "1 or 3"),
        ((4, 4, 3), np.zeros((2, 4, 4, 1), np.uint8), r"\[N, 4, 4, 3\] are needed"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape, images, message):
    with pytest.raises(ValueError, match=message):
        counting(shape=shape)[0](images)
    with pytest.raises(ValueError, match=message):
        counting(shape=shape)[0](iter([images]))


def test_every_kind_of_features_is_in_the_table():
    assert list(FEATURES) == ["auto", "classifier", "efficientnet", "inception"]
    assert random_state({"a.bn.running_var": (3,)})["a.bn.running_var"].min() > 0.4
