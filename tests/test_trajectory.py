"""The walk that is drawn is the walk that ends in the samples, and the pictures show this walk."""

import jax
import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from scoregen.app.build import build
from scoregen.app.config import load
from scoregen.app.report import sheet
from scoregen.app.trajectory import FRAMES, Walk, levels_to_show, save_animation, save_sheet, sheet_of, walk
from scoregen.data import Dataset
from scoregen.process import top


def parts_of(name, **options):
    config = load(name)
    config.net.unet.channels, config.net.unet.groups, config.net.unet.attention = 8, 4, ()
    config.sampler.n, config.sampler.batch = 9, 4
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in options.items()})
    parts = build(config, "trajectory")
    return parts, parts.model.init(jax.random.key(0), (1, *parts.dataset.shape))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddpm_toy", {}),
        ("ddpm_toy", {"sampler__step__name": "unipc", "sampler__grid__name": "logsnr"}),
        ("ncsn_digits", {"sampler__corrector__langevin__steps": 1}),
    ],
)
def test_the_walk_ends_in_the_samples_of_a_run(name, options):
    parts, params = parts_of(name, **options)
    sampling, process = parts.sampling, parts.sampling.process
    seen = walk(sampling, params, 4)
    np.testing.assert_allclose(seen.x0[-1], sampling(params, 4), rtol=1e-4, atol=1e-4)
    assert seen.x.shape == seen.x0.shape == (9, 4, *parts.dataset.shape)
    levels = sampling.sampler.levels(process)
    np.testing.assert_allclose(seen.noise, process.sigma(levels) / process.alpha(levels), rtol=1e-4)
    # x is scaled to the spread of the data, here 1, also where sigma is 10 or alpha is near 0.
    assert 0.5 < seen.x[0].std() < 1.6


@pytest.mark.slow
def test_long_walks_are_thinned_and_drawn(tmp_path):
    parts, params = parts_of("ddpm_toy", sampler__n=200)
    process, shown = parts.sampling.process, (parts.dataset, parts.scaling)
    seen = walk(parts.sampling, params, 5)
    assert len(seen.noise) == FRAMES and (np.diff(seen.noise) < 0).all()
    assert seen.noise[0] == pytest.approx(float(process.sigma(top(process)) / process.alpha(top(process))))
    seen = type(seen)(*(part[:3] for part in seen))
    with Image.open(save_animation(tmp_path / "walk.gif", *shown, seen)) as gif:
        assert gif.n_frames == 3
        pages = []
        for k in range(3):
            gif.seek(k)
            pages.append(np.asarray(gif.convert("RGB"), np.float64))
            assert gif.info["duration"] == (2000 if k == 2 else 100)
    assert abs(pages[0] - pages[2]).mean() > 0.05  # the points move
    sheet = imread(save_sheet(tmp_path / "walk.png", *shown, seen))
    assert sheet[..., :3].std() > 0.05


def test_levels_are_even_in_log_snr_where_the_noise_is_visible():
    """Not even in the index: most levels of a chain look like pure noise or like data."""
    noise = np.geomspace(160, 0.001, 400)
    for spread in (1.0, 10.0):
        some = levels_to_show(noise, spread)
        assert len(some) == 8 and (some[0], some[-1]) == (0, 399)
        ratios = noise[some[1:-2]] / noise[some[2:-1]]
        np.testing.assert_allclose(ratios, (2.5 / 0.1) ** (1 / 7), rtol=0.05)
        assert 0.1 * spread < noise[some[-2]] and noise[some[1]] < 2.5 * spread
    assert levels_to_show(noise[:3], 1.0).tolist() == [0, 2]  # three that look alike
    assert levels_to_show(np.array([2.0, 1.0, 0.5]), 1.0).tolist() == [0, 1, 2]


def table_walk(dims, offset=0.0, **options):
    """A walk of 50 examples through 12 frames."""
    rng = np.random.default_rng(0)
    data = Dataset("table", *(rng.normal(size=(300, dims)).astype(np.float32) for _ in range(2)), **options)
    x = rng.normal(size=(12, 50, dims))
    return data, Walk(np.geomspace(80, 0.01, 12), x, x + offset)


def test_a_walk_through_more_than_two_dimensions_says_what_it_shows():
    data, seen = table_walk(128)
    page = sheet_of(data, None, seen, "table, step 7")
    assert page.get_suptitle() == "table, step 7\n2 of 128 coordinates, the first ones"
    data, seen = table_walk(2, columns=("age", "height"))
    page = sheet_of(data, None, seen, "table, step 7")
    assert page.get_suptitle() == "table, step 7"
    assert page.axes[-1].get_xlabel() == "age" and page.axes[0].get_ylabel() == "x, scaled\nheight"
    heads = [panel.get_title() for panel in page.axes[: len(page.axes) // 2]]
    assert heads[0] == "sigma/alpha = 80" and heads[-1] == "sigma/alpha = 0.01"
    assert not any("e" in head.split("=")[1] for head in heads)


@pytest.mark.parametrize("offset", [5.0, 5e4])
def test_samples_that_leave_the_range_of_the_data_are_shown(offset):
    data, seen = table_walk(3, offset)
    page = sheet_of(data, None, seen)
    last = page.axes[-1]
    (low, high), (left, right) = last.get_ylim(), last.get_xlim()
    x, y = seen.x0[-1][:, :2].T
    assert np.mean((x > left) & (x < right) & (y > low) & (y < high)) > 0.95
    # Estimates outside the axes are drawn at the edge, and a text gives their share.
    far = seen._replace(x0=np.concatenate([seen.x0[:-1] + 9 * offset, seen.x0[-1:]]))
    first = sheet_of(data, None, far).axes[len(page.axes) // 2]
    assert [text.get_text() for text in first.texts] == ["100 % outside"]
    edge = np.concatenate([drawn.get_offsets() for drawn in first.collections])
    assert len(edge) == 50 and (edge[:, 0] <= first.get_xlim()[1]).all()


@pytest.mark.slow
def test_a_walk_of_images_is_drawn_pixel_by_pixel():
    parts, params = parts_of("ddpm_digits", sampler__n=4)
    seen = walk(parts.sampling, params, 4)
    page = sheet_of(parts.dataset, parts.scaling, seen, "digits")
    said = [text.get_text() for text in page.texts]
    assert said[0] == "digits" and said[-2:] == ["x,\nscaled", "estimate\nof x0"]
    assert len(page.images) == 2 * (len(said) - 3)
    drawn = [np.asarray(image.get_array()) for image in page.images]
    grid = sheet(parts.scaling.to_bytes(seen.x0[-1]), 160)
    assert any(np.array_equal(picture[..., :3], grid) for picture in drawn)
