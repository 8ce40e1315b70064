"""The walk that is shown is the walk of the samples, and the pictures hold it."""

import jax
import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from scoregen.app.build import build
from scoregen.app.config import load
from scoregen.app.trajectory import FRAMES, save_animation, save_sheet, walk
from scoregen.process import top


def parts_of(name, **options):
    config = load(name)
    config.net.unet.channels, config.net.unet.groups, config.net.unet.attention = 8, 4, ()
    config.sampler.n, config.sampler.batch = 9, 4
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in options.items()})
    parts = build(config, "trajectory")
    return parts, parts.model.init(jax.random.key(0), (1, *parts.dataset.shape))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddpm_toy", {}),
        ("ddpm_toy", {"sampler__step__name": "unipc", "sampler__grid__name": "logsnr"}),
        pytest.param("ncsn_digits", {"sampler__corrector__langevin__steps": 1}, marks=pytest.mark.slow),
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
    # Noise of a sigma of 10 or of alpha near 0 is shown with the spread of data, here 1.
    assert 0.5 < seen.x[0].std() < 1.6


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
