"""Metrics on features and their errors agree with reference libraries, closed forms and brute force."""

import importlib
import io
import json
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
from reference import metrics as reference
from scipy.stats import betabinom

from scoregen.errors import UsageError
from scoregen.metrics import (
    METRICS,
    POINT_METRICS,
    Activations,
    Moments,
    Neighbours,
    Origin,
    Statistics,
    frechet,
    frechet_distance,
    frechet_infinity,
    inception_score,
    inception_scores,
    judge,
    kid,
    kid_subsets,
    mmd,
    nearest_neighbours,
    prdc,
    read_activations,
    sliced_wasserstein,
    wasserstein,
    with_floor,
)
from scoregen.metrics.floor import floors
from scoregen.metrics.pairs import kernel_sums, nearest

NUMBERS = json.loads(reference.FILE.read_text())
CASES = reference.cases()


def _normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of pairs of 7 rows and 11 columns, so that small sets have several."""
    for name in ("pairs", "prdc"):
        module = importlib.import_module(f"scoregen.metrics.{name}")
        monkeypatch.setattr(module, "ROWS", 7)
        monkeypatch.setattr(module, "COLUMNS", 11)


# --- reference libraries --------------------------------------------------------------------------------------------


def _check_against(numbers, x, y, logits):
    def near(found, *names):
        for name in names:
            np.testing.assert_allclose(found, numbers[name][: len(found)], rtol=1e-6, atol=1e-6, err_msg=name)

    near([frechet_distance(x, y)], "torch-fidelity fid", "pytorch-fid")
    near([frechet(x, y).value], "torch-fidelity fid")
    subsets, scores = kid_subsets(x, y, **reference.SUBSETS), inception_scores(logits)
    near([subsets.mean(), subsets.std()], "torch-fidelity kid")
    near([scores.mean(), scores.std()], "torch-fidelity isc")
    near([inception_score(logits).value], "torch-fidelity isc")
    near([each.value for each in prdc(x, y)[:2]], "torch-fidelity prc")
    for k in (3, 5):
        near([each.value for each in prdc(x, y, k=k, k_density=k)], f"prdc {k}")
    assert [each.value for each in prdc(x, y)[2:]] == [each.value for each in prdc(x, y, k=4, k_density=5)[2:]]


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_of_the_libraries(name):
    _check_against(NUMBERS[name], *CASES[name])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", CASES)
def test_the_libraries_themselves(name):
    for package in ("torch_fidelity", "pytorch_fid", "prdc"):
        pytest.importorskip(package)
    _check_against(reference.reference(*CASES[name]), *CASES[name])


def test_exact_wasserstein():
    x, y = reference.points()
    assert wasserstein(x, y) ** 2 == pytest.approx(NUMBERS["points"]["POT"][0], rel=1e-9)
    assert wasserstein(x, x[::-1]) == 0
    shift = np.array([3.0, 0.0, 4.0])
    assert wasserstein(x + 1e5, x[::-1] + 1e5 + shift) == pytest.approx(5, rel=1e-9)
    a, b = 3 + _normal(0, 40), 2 * _normal(1, 40)
    assert wasserstein(a, b) == pytest.approx(np.sqrt(np.square(np.sort(a) - np.sort(b)).mean()), rel=1e-12)
    assert wasserstein(a, b) == pytest.approx(sliced_wasserstein(a, b, p=2), rel=1e-12)
    # No projection is longer, and none is shorter than the distance of the means.
    assert np.linalg.norm(x.mean(0) - y.mean(0)) < wasserstein(x, y)
    assert sliced_wasserstein(x, y, p=2) < wasserstein(x, y)
    with pytest.raises(UsageError, match=r"60 and 59 points: .* equally many, at most 5000: take the first 59 of each"):
        wasserstein(x, y[1:])
    with pytest.raises(UsageError, match=r"5001 and 5001 points: .* take the first 5000 of each"):
        wasserstein(np.zeros(5001), np.zeros(5001))


@pytest.mark.slow
def test_exact_wasserstein_of_pot():
    pytest.importorskip("ot")
    for seed in range(3):
        x, y = _normal(seed, 80, 2), 1 + 2 * _normal(seed + 10, 80, 2)
        assert wasserstein(x, y) ** 2 == pytest.approx(reference.squared_wasserstein(x, y), rel=1e-9)


# --- statistics -----------------------------------------------------------------------------------------------------


def test_moments_do_not_depend_on_the_batches():
    rows = (1e4 + _normal(0, 2600, 3) * [1.0, 1e-2, 30.0]).astype(np.float32)
    found = []
    for sizes in ([2600], [1, 1023, 1024, 552], [700] * 3 + [500], [0, 1, 2599]):
        moments = Moments()
        for batch in np.split(rows, np.cumsum(sizes)[:-1]):
            moments.add(batch)
        found.append(moments.statistics())
        assert found[-1].count == 2600
        np.testing.assert_array_equal(found[-1].mean, found[0].mean)
        np.testing.assert_array_equal(found[-1].cov, found[0].cov)
    exact = rows.astype(np.longdouble)
    centred = exact - exact.mean(axis=0)
    np.testing.assert_allclose(found[0].mean, exact.mean(axis=0).astype(float), rtol=1e-14)
    scale = np.sqrt(np.outer(*[np.diagonal(found[0].cov)] * 2))
    assert np.abs(found[0].cov - (centred.T @ centred / 2599).astype(float)).max() < 1e-12 * scale.max()
    assert (np.abs(found[0].cov - (centred.T @ centred / 2599).astype(float)) < 1e-11 * scale).all()
    # A generator is a set of batches, and more rows may follow.
    some = Statistics.of(rows[i : i + 100] for i in range(0, 2600, 100))
    np.testing.assert_array_equal(some.cov, found[0].cov)
    moments.add(rows[:5])
    np.testing.assert_allclose(moments.statistics().cov, np.cov(np.concatenate([rows, rows[:5]]).T), rtol=1e-6)


def test_moments_take_little_memory():
    rows = np.zeros((40_000, 50), np.float16)  # 16 MB in float64
    rows[::2] = 2
    tracemalloc.start()
    found = Statistics.of(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6
    np.testing.assert_allclose(found.cov, np.full((50, 50), 40_000 / 39_999), rtol=1e-12)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([np.zeros((1, 2))], "at least two rows of features, not 1"),
        ([], "at least two rows of features, not 0"),
        ([np.zeros((2, 2)), np.zeros((2, 3))], "of one F are needed, not 2 and 3"),
        ([np.zeros((2, 2)), np.full((2, 2), np.nan)], "2 of 2 rows of features are not finite: look at the samples"),
        ([np.zeros((2, 2), complex)], "real numbers"),
        ([np.zeros((2, 2, 1))], r"shape \[N, F\]"),
    ],
)
def test_moments_refuse(batches, message):
    with pytest.raises(ValueError, match=message):
        Statistics.of(iter(batches))


def test_files_of_pytorch_fid_and_score_sde(tmp_path):
    x, logits = _normal(0, 30, 4), _normal(1, 30, 7)
    np.savez_compressed(tmp_path / "fid.npz", mu=x.mean(0), sigma=np.cov(x.T).astype(np.float32))
    np.savez(tmp_path / "sde.npz", pool_3=x.astype(np.float32), logits=logits)
    fid, sde = Statistics.read(tmp_path / "fid.npz"), read_activations(tmp_path / "sde.npz")
    assert fid.count is None and fid.origin == Origin() and fid.mean.dtype == fid.cov.dtype == np.float64
    np.testing.assert_allclose(fid.cov, np.cov(x.T), rtol=1e-6)
    assert isinstance(sde, Activations)
    np.testing.assert_array_equal(sde.features, x.astype(np.float32))
    np.testing.assert_array_equal(sde.logits, logits)
    np.testing.assert_allclose(Statistics.read(str(tmp_path / "sde.npz")).cov, np.cov(x.T), rtol=1e-6)
    assert frechet_distance(fid, sde) < 1e-6


def test_own_files_say_how_they_were_made(tmp_path):
    origin = Origin("Inception", "5e1f", "bilinear", "round", "32x32")
    made = Statistics.of(_normal(0, 30, 4), origin)
    path = made.write(tmp_path / "own.npz")
    again = Statistics.read(path)
    assert (again.count, again.origin) == (30, origin)
    np.testing.assert_array_equal(again.mean, made.mean)
    np.testing.assert_array_equal(again.cov, made.cov)
    with np.load(path, allow_pickle=False) as file:  # as pytorch-fid reads it
        assert frechet_distance(Statistics(None, file["mu"][:], file["sigma"][:]), made) < 1e-12
    assert [file.name for file in tmp_path.iterdir()] == ["own.npz"]
    changes = {"key": "0", "resize": "nearest", "rounding": "truncate", "features": "B", "pictures": "64x64"}
    for name, value in changes.items():
        other = Statistics.of(_normal(0, 30, 4), Origin(**{**vars(origin), name: value}))
        with pytest.raises(UsageError, match=f"{name}: {value!r} on one side and .* on the other: compute both"):
            frechet_distance(other, again)
    with pytest.raises(UsageError) as caught:
        Origin("a", "b").check_same(Origin("c", "d"))
    assert len(caught.value.args) == 2
    assert frechet_distance(Statistics.of(_normal(0, 30, 4)), again) < 1e-12  # an unknown origin fits
    with pytest.raises(UsageError, match=r"own.pkl: statistics are a .npz file"):
        made.write(tmp_path / "own.pkl")
    with pytest.raises(UsageError, match="cannot write"):
        made.write(tmp_path / "own.npz" / "file.npz")


class _Opened:
    """A pickle that leaves a trace if it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(2), "sigma": np.eye(3)}, r"mean \[F\] and a covariance \[F, F\]"),
        ({"mu": np.zeros((2, 2)), "sigma": np.eye(2)}, r"mean \[F\] and a covariance \[F, F\]"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"mean \[F\] and a covariance \[F, F\]"),
        ({"mu": np.array([0, np.nan]), "sigma": np.eye(2)}, "not finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0.4, 1]])}, "not symmetric"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "negative variances"),
        (
            {"mu": np.zeros(2), "sigma": np.array([[1.0, 2.0], [2.0, 1.0]])},
            "negative eigenvalues, down to -0.33 of the",
        ),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "scoregen": np.array("[" * 100_000)}, "'scoregen' is damaged"),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "real numbers"),
        ({"mu": np.zeros(2)}, "is no file of statistics: 'mu' and 'sigma', or 'pool_3', are needed, and it holds 'mu'"),
        ({"images": np.zeros(2)}, "it holds 'images'"),
        ({}, "it is empty"),
        ({"pool_3": np.zeros(3)}, r"shape \[N, F\]"),
        ({"pool_3": np.full((3, 2), np.inf)}, "3 of 3 points are not finite"),
        ({"pool_3": np.zeros((3, 2)), "logits": np.zeros((2, 5))}, r"logits \[3, C\] are needed"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "scoregen": np.array("{")}, "'scoregen' is damaged"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "scoregen": np.array('{"count": 1}')}, "two rows of features, not 1"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "scoregen": np.array('{"count": "x"}')}, "'scoregen' is damaged"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "scoregen": np.array("3")}, "'scoregen' is damaged"),
    ],
)
def test_unfit_files(arrays, message, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UsageError, match=message) as caught:
        read_activations(tmp_path / "x.npz")
    assert str(tmp_path / "x.npz") in str(caught.value) and "\n" not in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(UsageError, match=r"none.npz cannot be read: No such file"):
        Statistics.read(tmp_path / "none.npz")
    with pytest.raises(UsageError, match=r"x.pkl: statistics are a .npz file"):
        Statistics.read(tmp_path / "x.pkl")
    with pytest.raises(TypeError, match="a path is needed"):
        Statistics.read(3)  # type: ignore[arg-type]
    good = Statistics.of(_normal(0, 30, 4)).write(tmp_path / "good.npz").read_bytes()
    trace = tmp_path / "trace"
    bad = {"cut": good[:300], "text": b"mu", "none": b"", "pickle": pickle.dumps(_Opened(trace))}
    for name, content in bad.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f"{name}.npz cannot be read"):
            Statistics.read(path)
    np.savez(tmp_path / "inside.npz", mu=np.array([_Opened(trace)], object), sigma=np.eye(1))
    with pytest.raises(
        UsageError, match=r"inside.npz cannot be read: it is damaged, encrypted, or no .npz file of numbers"
    ):
        Statistics.read(tmp_path / "inside.npz")
    assert not trace.exists()
    # A header of 10^14 numbers, and a member with a password.
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**14,)})
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("mu.npy", header.getvalue())
    with pytest.raises(UsageError, match=r"huge.npz cannot be read: by its header it is larger than the memory"):
        Statistics.read(tmp_path / "huge.npz")
    local, central = good.index(b"PK\3\4"), good.index(b"PK\1\2")
    locked = bytearray(good)
    locked[local + 6] |= 1
    locked[central + 8] |= 1
    (tmp_path / "locked.npz").write_bytes(locked)
    with pytest.raises(UsageError, match=r"locked.npz cannot be read: it is damaged, encrypted"):
        Statistics.read(tmp_path / "locked.npz")


def test_eigenvalues_that_rounding_made_negative_count_as_none(tmp_path):
    """A covariance of rank 30 in 150 dimensions, in float32, as some write it."""
    x, y = _normal(0, 31, 150), _normal(1, 400, 150)
    np.savez(tmp_path / "x.npz", mu=x.mean(0), sigma=np.cov(x.T).astype(np.float32))
    found = Statistics.read(tmp_path / "x.npz")
    assert np.linalg.eigvalsh(found.cov)[0] < 0
    assert frechet_distance(found, y) == pytest.approx(frechet_distance(x, y), rel=1e-3)
    with pytest.raises(ValueError, match="no covariance"):
        frechet_distance(Statistics(None, np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]])), y[:, :2])


@pytest.mark.slow
def test_pytorch_fid_reads_our_file(tmp_path):
    score = pytest.importorskip("pytorch_fid.fid_score")
    made = Statistics.of(_normal(0, 30, 4), Origin("Inception"))
    mean, cov = score.compute_statistics_of_path(str(made.write(tmp_path / "own.npz")), None, 1, 4, "cpu")
    np.testing.assert_array_equal(mean, made.mean)
    np.testing.assert_array_equal(cov, made.cov)


# --- Frechet --------------------------------------------------------------------------------------------------------


def _without(metric, x):
    """The values of a metric without one of the rows each."""
    return np.array([metric(np.delete(x, i, axis=0)) for i in range(len(x))])


def _jackknife(values):
    return np.sqrt((len(values) - 1) * np.var(values))


def test_frechet_error_in_one_dimension():
    # d^2 = (m - a)^2 + (s - b)^2: the delta method with the sample's own moments.
    x, a, b = 0.5 + 1.5 * _normal(0, 4000), 2.0, 1.0
    m, s, c = x.mean(), x.std(), x - x.mean()
    psi = 2 * (m - a) * c + (s - b) * (c**2 - s**2) / s
    found = frechet(x[:, None], Statistics(None, np.array([a]), np.array([[b * b]])))
    assert found.std == pytest.approx(psi.std() / np.sqrt(len(x)), rel=1e-3)
    assert found.value == pytest.approx((m - a) ** 2 + (s - b) ** 2, rel=1e-3)
    assert found.interval == pytest.approx((found.value - 1.96 * found.std, found.value + 1.96 * found.std))


@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_frechet_error_by_jackknife_and_bootstrap(shift):
    x, y = _normal(0, 150, 3) @ _normal(5, 3, 3) + shift, _normal(1, 400, 3)
    found, fixed = frechet(x, y), Statistics.of(y)
    brute = _jackknife(_without(lambda rows: frechet_distance(rows, fixed), x))
    assert found.std == pytest.approx(brute, rel=0.05)
    rng = np.random.default_rng(2)
    drawn = [frechet_distance(x[rng.integers(0, 150, 150)], fixed) for _ in range(600)]
    assert found.std == pytest.approx(np.std(drawn), rel=0.15)  # its own error is 3 %, and the bias 1/N
    assert "infinitesimal jackknife over 150 samples" in found.how and found.better == "lower"


def test_frechet_error_of_singular_covariances():
    x, y = _normal(0, 20, 64), 1 + _normal(1, 30, 64)
    found = frechet(x, y)
    assert found.value == pytest.approx(frechet_distance(x, y), rel=1e-9)
    assert 0.5 < found.std / _jackknife(_without(lambda rows: frechet_distance(rows, y), x)) < 2
    assert "rough" in found.how
    constant = frechet(np.ones((5, 2)), np.zeros((5, 2)))
    assert (constant.value, constant.std) == (2, 0)
    plane = np.concatenate([x[:, :2], np.zeros((20, 3))], axis=1)
    flat = frechet(plane, np.concatenate([y[:, :2], np.zeros((30, 3))], axis=1))
    assert flat.std == pytest.approx(frechet(x[:, :2], y[:, :2]).std, rel=1e-5)
    assert "rough" not in flat.how


def test_frechet_of_statistics():
    x, y = _normal(0, 40, 3), 1 + _normal(1, 40, 3)
    whole, known = frechet(x, y), frechet(Statistics.of(x), Activations(y))
    assert known.value == whole.value and known.std is None and known.interval is None
    assert frechet(Activations(x), Statistics.of(y)) == whole
    assert str(whole) == f"Frechet distance {whole.value:.4g} +- {whole.std:.2g}"
    with pytest.raises(ValueError, match="of one F are needed, not 3 and 2"):
        frechet(x, y[:, :2])


def _known(shift, scale):
    """Samples of N(shift, scale^2 I) in four dimensions, their reference N(0, I), and the exact distance."""
    return Statistics(None, np.zeros(4), np.eye(4)), 4 * shift**2 + 4 * (scale - 1) ** 2


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 1.2)])
def test_frechet_infinity_of_known_gaussians(shift, scale):
    reference, exact = _known(shift, scale)
    results, plain = [], []
    for seed in range(40):
        x = shift + scale * _normal(seed, 300, 4)
        results.append(frechet_infinity(x, reference, seed=seed))
        plain.append(frechet_distance(x, reference))
    values, stds = (np.array([getattr(r, name) for r in results]) for name in ("value", "std"))
    error = values.std(ddof=1) / np.sqrt(40)
    assert abs(values.mean() - exact) < 3 * error
    bias = np.array(plain) - values  # the bias that is removed
    assert bias.mean() > 3 * bias.std() / np.sqrt(40)
    # On average the error is at least the spread, and not twice as large.
    assert 0.8 < np.sqrt(np.mean(stds**2)) / values.std(ddof=1) < 1.9
    assert np.mean(np.abs(values - exact) < 1.96 * stds) >= 0.85


def test_frechet_infinity_fits_a_line(monkeypatch):
    """Distances that lie on a line in 1/N give its value at 0, and the error beyond the first order is 0."""
    x = _normal(0, 120, 2)
    plain = frechet(x, x + 1.0)
    module = importlib.import_module("scoregen.metrics.frechet")
    monkeypatch.setattr(module, "frechet_distance", lambda rows, y: 7.0 + 30.0 / len(rows))
    monkeypatch.setattr(module, "_influence", lambda *_: (0.0, np.ones(120)))
    found = frechet_infinity(x, x + 1.0)
    assert found.value == pytest.approx(7, rel=1e-12)
    assert found.std == pytest.approx(1 / np.sqrt(119)) and plain.std != found.std
    assert "groups of 24 to 120 samples" in found.how
    # A spread of the groups that is not of first order: their squares sum to 8 and 18, so a = (8/4 + 18/9) / (2/3).
    given = iter([0.0, 2.0, -2.0, 3.0, -3.0, 0.0])
    monkeypatch.setattr(module, "frechet_distance", lambda rows, y: next(given))
    # Weights at 1/N, 2/N and 3/N are 4/3, 1/3 and -2/3; std^2 = 1/119 + (1/9 + 4/9 * 2) a.
    assert frechet_infinity(x, x + 1.0, parts=3).std == pytest.approx(np.sqrt(1 / 119 + 6))


@pytest.mark.parametrize("parts", [3, 5])
def test_the_error_of_the_splits(parts, monkeypatch):
    """Of the squared mean, which is of second order, the value of one set varies with the splits as the error says."""
    x = np.resize([-1.0, 1.0], (240, 1))  # of equal squares, which leaves no other order
    module = importlib.import_module("scoregen.metrics.frechet")
    monkeypatch.setattr(module, "frechet_distance", lambda rows, y: float(rows.mean() ** 2))
    monkeypatch.setattr(module, "_influence", lambda rows, *_: (0.0, np.zeros(len(rows))))
    found = [frechet_infinity(x, x + 1.0, parts=parts, seed=seed) for seed in range(500)]
    values, stds = (np.array([getattr(result, name) for result in found]) for name in ("value", "std"))
    assert 0.9 < values.std() / np.sqrt(np.mean(stds**2)) < 1.1  # one permutation for all splits gives 0.77


def test_frechet_infinity_refuses():
    x = _normal(0, 80, 8)
    assert frechet_infinity(x, x + 1.0).value < frechet_distance(x, x + 1.0)
    with pytest.raises(UsageError, match=r"79 samples in 5 groups: .* in 8 features needs at least 80 samples"):
        frechet_infinity(x[:79], x)
    assert len(judge(x[:79], x)) == len(judge(x, x)) - 1
    with pytest.raises(UsageError, match="frechet_infinity: 79 samples in 5 groups"):
        judge(x[:79], x, ["frechet_infinity"])
    with pytest.raises(UsageError, match="only their statistics"):
        frechet_infinity(Statistics.of(x), x)
    with pytest.raises(ValueError, match="parts=2: at least 3"):
        frechet_infinity(x, x, parts=2)


# --- KID ------------------------------------------------------------------------------------------------------------


def _brute_kid(x, y):
    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    n, m = len(x), len(y)
    own = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    among = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + among - 2 * np.mean([[k(a, b) for b in y] for a in x])


def test_kid_by_brute_force():
    x, y = 1 + _normal(0, 12, 3), _normal(1, 9, 3)
    found = kid(x, y)
    assert found.value == pytest.approx(_brute_kid(x, y), rel=1e-12)
    assert found.std == pytest.approx(_jackknife(_without(lambda rows: _brute_kid(rows, y), x)), rel=1e-12)
    assert kid(x.astype(np.float32), y).value == pytest.approx(found.value, rel=1e-5)
    # A subset that is the whole is the whole.
    assert kid_subsets(x[:9], y, subsets=2, size=9) == pytest.approx(kid(x[:9], y).value, rel=1e-12)
    assert (kid_subsets(x, y, subsets=3, size=5) == kid_subsets(x, y, subsets=3, size=5, seed=2020)).all()
    assert (kid_subsets(x, y, subsets=3, size=5) != kid_subsets(x, y, subsets=3, size=5, seed=1)).any()


def test_kid_has_no_bias():
    values = np.array([kid(_normal(seed, 40, 2), _normal(seed + 1000, 25, 2)).value for seed in range(300)])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(300)
    # E k(a, b) for a ~ N(m, I), b ~ N(n, I) in one dimension is E (a b + 1)^3; moments by hand for m = 1, n = 0.
    own = (1 + 3) * (1 + 3) + 3 * 2 * 2 + 3 * 1 + 1  # E a^3 = m^3 + 3 m = 4, E a^2 = 2
    among, cross = 3 * 1 * 1 + 1, 3 * 2 * 1 + 1
    values = np.array([kid(1 + _normal(s, 60, 1), _normal(s + 1000, 60, 1)).value for s in range(300)])
    assert abs(values.mean() - (own + among - 2 * cross)) < 3 * values.std() / np.sqrt(300)


def test_kid_refuses():
    x = _normal(0, 5, 2)
    with pytest.raises(UsageError, match="2 and 5 rows of features: at least 3 samples and 2"):
        kid(x[:2], x)
    with pytest.raises(UsageError, match="subsets of 1000, but there are only 5 rows"):
        kid_subsets(x, x)
    with pytest.raises(ValueError, match="size=1: at least 2"):
        kid_subsets(x, x, size=1)
    with pytest.raises(ValueError, match="unequal dimensions"):
        kid(x, _normal(0, 5, 3))


# --- Inception score ------------------------------------------------------------------------------------------------


def test_inception_score_closed_forms():
    sure = inception_score(1e4 * np.eye(6)[np.arange(60) % 6], splits=1)
    assert sure.value == pytest.approx(6) and sure.std == pytest.approx(0, abs=1e-9)
    assert inception_score(_normal(0, 40, 1) + np.zeros((40, 5))).value == pytest.approx(1)
    # Half of the samples in one class and half undecided between both: q = (3/4, 1/4).
    logits = np.array([[1000.0, 0.0], [3.0, 3.0]] * 50, np.float32)
    want = np.exp((np.log(4 / 3) + (np.log(2 / 3) + np.log(2)) / 2) / 2)
    assert inception_score(logits, splits=1).value == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("splits", [1, 3])
def test_inception_score_error(splits):
    logits = 2 * _normal(0, 300, 5)
    found = inception_score(logits, splits=splits)
    order, squares = np.random.RandomState(2020).permutation(300), 0.0
    for part in np.array_split(logits[order], splits):
        squares += _jackknife(_without(lambda rows: inception_score(rows, splits=1).value, part)) ** 2
    assert found.std == pytest.approx(np.sqrt(squares) / splits, rel=0.02)
    assert found.better == "higher"


def test_inception_score_refuses():
    with pytest.raises(UsageError, match="5 samples in 10 splits: at least 20"):
        inception_score(np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"shape \[N, C\]"):
        inception_score(np.zeros(5))
    with pytest.raises(ValueError, match="not finite"):
        inception_score(np.full((50, 3), np.nan))


# --- precision, recall, density, coverage ---------------------------------------------------------------------------


def _brute_prdc(x, y, k, k_density):
    def distances(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=2)

    def radii(a, k):
        return np.sort(distances(a, a), axis=1)[:, k]

    across = distances(x, y)
    within = across < radii(y, k_density)
    return np.array(
        [
            (across <= radii(y, k)).any(1).mean(),
            (across <= radii(x, k)[:, None]).any(0).mean(),
            within.sum() / k_density / len(x),
            within.any(0).mean(),
        ]
    )


@pytest.mark.parametrize(
    ("n", "m", "scale", "k", "k_density"), [(60, 45, 1.2, 3, 5), (60, 45, 1.2, 1, 1), (20, 200, 0.6, 3, 2)]
)
def test_prdc_by_brute_force(n, m, scale, k, k_density):
    x, y = 0.8 + scale * _normal(0, n, 2), _normal(1, m, 2)
    found = prdc(x, y, k=k, k_density=k_density)
    assert [each.name for each in found] == ["precision", "recall", "density", "coverage"]
    np.testing.assert_allclose([each.value for each in found], _brute_prdc(x, y, k, k_density), rtol=1e-12)
    without = _without(lambda rows: _brute_prdc(rows, y, k, k_density), x)
    # For means over the samples the jackknife is the standard error of a mean.
    errors = np.maximum([_jackknife(v) for v in without.T], 1.96 / (n + 1.96**2))
    np.testing.assert_allclose([each.std for each in found], errors, rtol=1e-12)
    assert all(each.better == "higher" for each in found)


def test_prdc_by_blocks(small_blocks):
    x, y = 0.3 + _normal(0, 90, 2), _normal(1, 60, 2)
    found = prdc(x, y)
    np.testing.assert_allclose([each.value for each in found], _brute_prdc(x, y, 3, 5), rtol=1e-12)
    without = _without(lambda rows: _brute_prdc(rows, y, 3, 5), x)
    np.testing.assert_allclose([each.std for each in found], [_jackknife(v) for v in without.T], rtol=1e-12)


def test_prdc_on_the_boundary_of_balls():
    """Precision and recall include it, density and coverage do not."""
    x, y = np.array([-3.0, 0.0, 3.0]), np.array([-2.0, -1.0, 1.0, 2.0])
    assert [each.value for each in prdc(x, y, k=1, k_density=1)] == [1, 1, 0, 0]
    y = np.array([-6.0, -5.0, 5.0, 6.0])
    assert [each.value for each in prdc(x, y, k=1, k_density=1)] == [0, 1, 0, 0]


def test_prdc_of_equal_and_of_distant_sets():
    x = _normal(0, 1100, 7)
    assert [each.value for each in prdc(x, x.copy())] == [1, 1, 1, 1]
    assert [each.value for each in prdc(x, x + 100)] == [0, 0, 0, 0]
    # Wilson's intervals of 0 of 50 and of 50 of 50.
    for shift, ends in ((100, (0, 1.96**2 / (50 + 1.96**2))), (0, (50 / (50 + 1.96**2), 1))):
        found = prdc(x[:50], x[:50] + shift)
        assert all(each.std > 0 for each in found)
        assert found[0].interval == pytest.approx(ends)
        for each in (found[1], found[3]):
            low, high = each.interval
            assert 0 <= low <= ends[0] + 1e-9 and ends[1] - 1e-9 <= high <= 1
    assert prdc(x[:50], x[:50] + 100)[2].interval[0] == 0 and prdc(x[:50], 0.5 * x[:50])[2].limits[1] == np.inf
    with pytest.raises(UsageError, match=r"5 samples and 1100 real ones: .* need 6 of each"):
        prdc(x[:5], x)
    with pytest.raises(ValueError, match="k=0: at least 1"):
        prdc(x, x, k=0)


@pytest.mark.slow
def test_errors_beside_the_spread_of_independent_draws():
    """On average no error is too small, and those of the jackknife are at most twice as large."""
    y, found = _normal(0, 600, 6), {}
    for seed in range(1, 81):
        x = 0.2 + 1.1 * _normal(seed, 250, 6)
        for result in judge(x, y, ["frechet", "kid", "prdc"]):
            found.setdefault(result.name, []).append((result.value, result.std))
    for name, pairs in found.items():
        values, stds = np.array(pairs).T
        ratio = np.sqrt(np.mean(stds**2)) / values.std(ddof=1)
        assert 0.75 < ratio < (2.1 if name in ("recall", "coverage") else 1.35), name  # the spread is known to 8 %


# --- pairs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4, 15])
def test_nearest_by_blocks(count, small_blocks):
    x = _normal(0, 60, 2)
    squares, index = nearest(x[:17], x, count)
    assert (index[:, 0] == np.arange(17)).all() and np.abs(squares[:, 0]).max() < 1e-14
    squares, index = nearest(x, x, count, others=True, centre=x.mean(0))
    for i in range(60):
        distances = np.square(x - x[i]).sum(axis=1)
        distances[i] = np.inf
        np.testing.assert_array_equal(index[i], np.argsort(distances)[:count])
        np.testing.assert_allclose(squares[i], np.sort(distances)[:count], rtol=1e-9, atol=1e-14)


def test_sums_of_a_kernel_by_blocks(small_blocks):
    x, y = _normal(0, 30, 2), _normal(1, 40, 2)
    sums = kernel_sums(lambda a, b: (a @ b.T) ** 2, x, y, centre=np.array([0.5, 0.0]))
    np.testing.assert_allclose(sums, np.square((x - [0.5, 0]) @ (y - [0.5, 0]).T).sum(axis=1), rtol=1e-12)
    assert kid(x, y).value == pytest.approx(_brute_kid(x, y), rel=1e-12)


# --- all of them ----------------------------------------------------------------------------------------------------


def test_judge():
    x, y, real = (
        Activations(shift + _normal(seed, n, 3), _normal(seed + 10, n, 4), Origin("Inception", rounding="round"))
        for seed, n, shift in ((0, 60, 1.0), (1, 80, 0.0), (2, 200, 0.0))
    )
    found = {result.name: result for result in judge(x, y, real=real, repeats=3)}
    names = ["FID", "FID-infinity", "KID", "Inception score", "precision", "recall", "density", "coverage"]
    assert list(found) == names
    assert found["FID"].value == frechet_distance(x.features, y.features)
    assert found["KID"].value == kid(x.features, y.features).value and found["KID"].std is not None
    assert found["Inception score"].value == inception_score(x.logits).value
    assert found["coverage"].value == prdc(x.features, y.features)[3].value
    # The floor is that of with_floor, with the same subsets.
    for name, distance in (("FID", frechet_distance), ("recall", lambda a, b: prdc(a, b)[1].value)):
        floor = with_floor(distance, x.features, real.features, y.features, repeats=3)
        assert (found[name].value, found[name].floor, found[name].floor_std) == (
            floor.value,
            pytest.approx(floor.floor, rel=1e-12),
            pytest.approx(floor.floor_std, rel=1e-9),
        )
        assert floor.floor_std > 0
    assert found["FID"].value > found["FID"].floor + 3 * found["FID"].floor_std
    assert found["precision"].value < found["precision"].floor
    score = [inception_score(part).value for part in real.logits[np.sort(_subsets(200, 60))]]
    assert found["Inception score"].floor == pytest.approx(np.mean(score))
    assert ", floor " in str(found["FID"])


def _subsets(total, count):
    return np.random.default_rng(0).permutation(total)[: 3 * count].reshape(3, count)


def test_results_are_named_by_what_is_known_on_any_side():
    x, y, named = _normal(0, 40, 3), _normal(1, 40, 3), Origin("Inception", pictures="32x32")
    known, plain = Statistics.of(x), Activations(y)
    assert judge(known, Activations(y, origin=named), ["frechet"])[0].name == "FID"
    assert judge(Statistics.of(x, named), plain, ["frechet"])[0].name == "FID"
    assert judge(known, plain, ["frechet"], real=Activations(y, origin=named))[0].name == "FID"
    assert judge(known, plain, ["frechet"])[0].name == "Frechet distance"
    other = Activations(y, origin=Origin(pictures="64x64"))
    # The sides of a floor are compared with what is known of both others.
    for sides in ((Statistics.of(x, named), other, None), (Statistics.of(x, named), plain, other)):
        with pytest.raises(UsageError, match="pictures: '32x32' on one side and '64x64' on the other"):
            judge(*sides[:2], ["frechet"], real=sides[2])


def test_judge_says_what_its_floor_lacks():
    x, real = _normal(0, 30, 3), _normal(1, 90, 3)
    enough, overlapping, whole, single = (
        judge(x, _normal(2, 50, 3), ["frechet"], real=real[:n], repeats=repeats)[0]
        for n, repeats in ((90, 3), (89, 3), (30, 3), (90, 1))
    )
    assert "floor" not in enough.how and enough.floor_std > 0
    assert overlapping.how.endswith("; the floor's subsets overlap, so its spread is too small")
    assert overlapping.floor_std > 0
    for of_one in (whole, single):
        assert of_one.how.endswith("; the floor is of one subset, so its spread is not known")
        assert of_one.floor_std is None and of_one.floor > 0
        assert str(of_one).endswith(f", floor {of_one.floor:.4g}")


def test_errors_name_the_metric():
    x = _normal(0, 5, 2)
    assert [result.name for result in judge(x[:2], x)] == ["Frechet distance"]  # KID needs three
    with pytest.raises(UsageError, match=r"^kid: 3 or more are needed on each side, not 2$"):
        judge(x[:2], x, ["kid"])
    with pytest.raises(ValueError, match=r"^frechet: features of one F are needed, not 2 and 3"):
        judge(x, _normal(0, 5, 3), ["frechet"])
    with pytest.raises(ValueError, match=r"^repeats=0: at least 1"):
        judge(x, x, ["frechet"], real=x, repeats=0)


def test_a_floor_of_all_real_data_is_computed_once():
    seen = []
    assert floors(lambda rows: seen.append(rows) or 1.0, 7, np.zeros(7)).tolist() == [1.0] and len(seen) == 1


def test_judge_names_the_features():
    x = Activations(_normal(0, 30, 3), origin=Origin("EfficientNet-Lite0"))
    names = [result.name for result in judge(x, x.statistics)]
    assert names == ["Frechet distance, EfficientNet-Lite0", "Frechet distance, extrapolated, EfficientNet-Lite0"]
    assert [result.name for result in judge(_normal(0, 30, 3), x, ["kid"])] == ["kernel distance, EfficientNet-Lite0"]
    assert [result.floor for result in judge(_normal(0, 30, 3), x, ["kid"])] == [None]


def test_judge_of_points():
    x, y, train = 1 + _normal(0, 50, 2), _normal(1, 70, 2), _normal(2, 300, 2)
    found = {result.name: result for result in judge(x, y, list(POINT_METRICS), real=train)}
    assert found["sliced Wasserstein"].value == sliced_wasserstein(x, y)
    assert found["MMD"].value == mmd(x, y)
    assert found["Wasserstein-2"].value == wasserstein(x, y[:50])
    assert "first 50 points" in found["Wasserstein-2"].how
    assert all(r.value > r.floor > 0 and r.better == "lower" and r.std is None for r in found.values())


def test_judge_refuses():
    x = _normal(0, 30, 3)
    statistics = Statistics.of(x)
    with pytest.raises(UsageError, match=r"metric 'fid' is not known: take one of frechet") as caught:
        judge(statistics, x, ["fid", "kid", "inception_score"])
    assert len(caught.value.args) == 3
    assert "kid: the samples' rows of features are needed" in str(caught.value)
    with pytest.raises(UsageError, match="prdc: the reference's rows of features are needed, and there are only"):
        judge(x, statistics, ["prdc"])
    with pytest.raises(UsageError, match="inception_score: the samples' logits are needed"):
        judge(x, x, ["inception_score"])
    with pytest.raises(UsageError, match="rounding: 'a' on one side"):
        judge(Activations(x, origin=Origin(rounding="a")), Activations(x, origin=Origin(rounding="b")), ["kid"])
    with pytest.raises(UsageError, match="resize: 'a' on one side and 'b'"):
        judge(x, Activations(x, origin=Origin(resize="a")), ["kid"], real=Activations(x, origin=Origin(resize="b")))
    with pytest.raises(UsageError, match=r"^30 samples, but there are only 20 real examples"):
        judge(x, x, ["frechet"], real=x[:20])
    with pytest.raises(UsageError, match="a floor needs rows of real data"):
        judge(x, x, ["frechet"], real=statistics)
    unknown = Statistics(None, statistics.mean, statistics.cov)
    with pytest.raises(UsageError, match="a floor needs"):
        judge(unknown, x, ["frechet"], real=x)
    assert judge(statistics, x, ["frechet"], real=x)[0].floor == pytest.approx(0, abs=1e-9)
    assert set(METRICS) & set(POINT_METRICS) == set()


# --- memorisation ---------------------------------------------------------------------------------------------------


def test_closest_samples_and_the_memorised_share():
    train, held_out = _normal(0, 400, 6), _normal(1, 1000, 6)
    samples = np.concatenate([_normal(2, 997, 6), train[[7, 300, 9]] + [[0.02], [0.0], [0.01]]])
    near = nearest_neighbours(samples, train, held_out)
    which, where, distances = near.closest(3)
    assert which.tolist() == [998, 999, 997] and where.tolist() == [300, 9, 7]
    np.testing.assert_allclose(distances, [0, 0.01 * 6**0.5, 0.02 * 6**0.5], atol=1e-12)
    assert len(near.closest(2000)[0]) == 1000
    assert near.limit == np.sort(near.held_out)[9] and near.memorised_held_out == 0.01
    assert near.memorised == np.mean(near.samples <= near.limit) and 0.003 <= near.memorised < 0.023
    assert near.statement() == (
        f"{100 * near.memorised:.1f} % of the samples are as near to a training image as the nearest 1.0 % of held-out "
        "images: this may be chance"
    )
    copies = nearest_neighbours(train, train, held_out)
    assert copies.memorised == 1
    assert copies.statement("points").endswith(
        "training point as the nearest 1.0 % of held-out points: more than chance"
    )
    with pytest.raises(ValueError, match="count=0: at least 1"):
        near.closest(0)


def _neighbours(samples, held_out):
    return Neighbours(np.asarray(samples, float), np.asarray(held_out, float), np.zeros(len(samples), int), 1.0)


def test_the_limit_of_chance():
    """The share is k-th of M; the number of samples up to it is beta-binomial (N, k, M + 1 - k)."""
    for n, m, k in ((1000, 1000, 10), (300, 250, 2), (200, 5, 1)):
        law = betabinom(n, k, m + 1 - k)
        held_out = 1.0 + np.arange(m)
        for count in (0, 1, int(law.isf(1e-3)), int(law.isf(1e-3)) + 1, n):
            near = _neighbours(np.where(np.arange(n) < count, k, m + 1.0), held_out)
            assert (near.limit, near.memorised, near.memorised_held_out) == (k, count / n, k / m)
            assert near.chance == pytest.approx(law.sf(count - 1), rel=1e-6, abs=1e-9)
            assert near.statement().endswith("more than chance") == (law.sf(count - 1) < 1e-3)


@pytest.mark.parametrize("m", [5, 30, 100, 250])
def test_a_perfect_sampler_is_rarely_called_a_copier(m):
    """Samples and held-out points of one distribution, also of one with few values, which has many ties."""
    rng, alarms = np.random.default_rng(0), []
    for i in range(600):
        samples, held_out = rng.random(400), rng.random(m)
        if i % 2:
            samples, held_out = np.floor(20 * samples), np.floor(20 * held_out)
        alarms.append(_neighbours(samples, held_out).chance < 1e-3)
    assert sum(alarms) <= 3  # 0.6 are expected


def test_copies_are_seen_where_held_out_pictures_are_duplicates():
    held_out = np.concatenate([np.zeros(20), 1.0 + np.arange(980)])  # 2 % are in the training set too
    copies, perfect = (_neighbours(np.where(np.arange(500) < n, 0.0, 5000.0), held_out) for n in (500, 10))
    assert (copies.memorised, copies.memorised_held_out, copies.limit) == (1, 0.02, 0)
    assert "the nearest 2.0 % of held-out images: more than chance" in copies.statement()
    assert perfect.memorised == 0.02 and perfect.chance > 0.3 and "may be chance" in perfect.statement()


def test_few_held_out_points_are_named():
    near = _neighbours(np.zeros(3), 1.0 + np.arange(5))
    assert near.statement() == (
        "100.0 % of the samples are as near to a training image as the nearest 20.0 % of only 5 held-out images: "
        "this may be chance"
    )
    assert near.chance == pytest.approx(3 * 2 * 1 / (8 * 7 * 6))
    assert _neighbours(np.zeros(300), 1.0 + np.arange(5)).statement().endswith("images: more than chance")
    assert _neighbours(np.ones(9), np.ones(4)).chance == 1  # all are equally far
