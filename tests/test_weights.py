"""Import and export change no bit and run no code of a file, and our networks give the outputs of other libraries."""

import contextlib
import importlib.util
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusal import refused
from safetensors.numpy import load_file, save_file
from torch_frames import archive, saved, state, tensor, text

from scoregen.app.build import network
from scoregen.app.config import build, load
from scoregen.app.main import main as scoregen
from scoregen.contrib.weights import command, pipeline, source, unet, workdir
from scoregen.contrib.weights.layout import Entry, to_ours, to_theirs
from scoregen.contrib.weights.source import FORMATS
from scoregen.denoiser import CONDITIONS, from_network, input_scale
from scoregen.errors import UsageError
from scoregen.files import sha256
from scoregen.guidance import X0S
from scoregen.nets import Cond, NCSNpp, UNet
from scoregen.process import EDM, PROCESSES, ddpm
from scoregen.random import broadcast
from scoregen.samplers import STEPS, Ancestral, Listed, Sampler, steps

DATA = Path(__file__).parent / "data"


def arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays in a file of reference values."""
    with np.load(DATA / name) as file:
        return dict(file)


UNET2D = DATA / "unet2d"
FILE = Path("unet", source.WEIGHTS)


def main(*argv) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command.main([str(arg) for arg in argv])
    return code, out.getvalue(), err.getvalue()


def done(*argv) -> str:
    """The output of a call that ends well."""
    code, out, err = main(*argv)
    assert (code, err) == (0, "")
    return out


def answered(*argv, parts=()) -> str:
    """The one line with which a call is refused."""
    code, out, err = main(*argv)
    assert code == 2
    assert err.startswith("scoregen: ") and err.count("\n") == 1
    assert "Traceback" not in out + err
    for part in parts:
        assert str(part) in err
    return err


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The tiny pipeline, imported as a run."""
    target = tmp_path_factory.mktemp("runs") / "tiny"
    done("import", UNET2D, f"--workdir={target}")
    return target


# --- diffusers


@pytest.mark.slow
def test_what_diffusers_gives(imported):
    """Our output equals diffusers' to 1e-4 in float32, at three times. Weights of unit order show a wrong layer."""
    config = workdir.configuration(imported)
    shape = workdir.example_shape(imported, config)
    params, _ = workdir.read(imported, workdir.shapes_of(config, shape))
    net, held = UNet(**config.net.unet.to_dict()), arrays("unet2d.npz")
    x, t = held["x"].transpose(0, 2, 3, 1), held["t"].astype(np.float32)
    got = jax.jit(net.apply, compiler_options={"xla_backend_optimization_level": 0})({"params": params}, x, Cond(t))
    assert held["y"].std() > 0.1
    np.testing.assert_allclose(np.asarray(got).transpose(0, 3, 1, 2), held["y"], atol=1e-4, rtol=1e-4)


def test_in_and_out_again_changes_no_bit(imported, tmp_path):
    done("export", imported, f"--out={tmp_path / 'out'}")
    before, after = (load_file(folder / FILE) for folder in (UNET2D, tmp_path / "out"))
    assert before.keys() == after.keys() and {a.dtype for a in after.values()} == {np.dtype("float16")}
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert all(before[name].shape == after[name].shape for name in before)
    for part in ("unet/config.json", "scheduler/scheduler_config.json", "model_index.json"):
        before, after = (json.loads((folder / part).read_text()) for folder in (UNET2D, tmp_path / "out"))
        said = {key: value for key, value in before.items() if key in after}
        assert said == after
        # The export leaves out only a remark and options that other options switch off.
        assert set(before) - set(after) <= {"_diffusers_version"}


@pytest.mark.slow
def test_the_types_are_kept(tmp_path):
    """Each array keeps its own type."""
    theirs, kinds = shutil.copytree(UNET2D, tmp_path / "theirs"), ("bfloat16", "float64", "float32", "float16")
    halves = sorted(load_file(theirs / FILE).items())
    before = {name: a.astype(np.float32).astype(kinds[i % 4]) for i, (name, a) in enumerate(halves)}
    save_file(before, theirs / FILE)
    done("import", theirs, f"--workdir={tmp_path / 'run'}")
    done("export", tmp_path / "run", f"--out={tmp_path / 'out'}")
    after = load_file(tmp_path / "out" / FILE)
    assert all(after[name].dtype == a.dtype and after[name].tobytes() == a.tobytes() for name, a in before.items())


@pytest.mark.slow
def test_names_of_older_files(tmp_path):
    """The first checkpoints on the hub have other names for the layers of attention."""
    theirs = shutil.copytree(UNET2D, tmp_path / "theirs")
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    arrays = load_file(theirs / FILE)
    for new, name in old.items():
        arrays = {key.replace(new, name): a for key, a in arrays.items()}
    assert sum("query" in key for key in arrays) == 8
    save_file(arrays, theirs / FILE)
    done("import", theirs, f"--workdir={tmp_path / 'run'}")
    done("export", tmp_path / "run", f"--out={tmp_path / 'out'}")
    before, after = (load_file(folder / FILE) for folder in (UNET2D, tmp_path / "out"))
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


@pytest.mark.slow
def test_the_run_samples_and_trains_on(imported, tmp_path):
    """Both commands need only the workdir."""
    there = shutil.copytree(imported, tmp_path / "run")
    few = ("--config.sampler.n=2", "--config.sampler.images=2", "--config.sampler.batch=2")
    train = ("--steps=2", "--config.eval.at_end=false")
    before = workdir.read(there, shapes_there(there), False)[0]
    for argv in (("sample", there, *few), ("train", there, *few, *train)):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            assert scoregen([str(arg) for arg in argv]) == 0
        assert err.getvalue() == ""
        assert np.load(there / "samples.npy").shape == (2, 8, 8, 1)
    after, step = workdir.read(there, shapes_there(there), False)
    assert step == 2 and "continuing to step 2" in out.getvalue()
    moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True)]
    assert 0 < max(moved) < 1e-2  # Adam's first steps from what was imported


def shapes_there(there):
    return workdir.shapes_of(workdir.configuration(there), (8, 8, 1))


def test_the_run_is_what_was_imported(imported):
    """Average and parameters are the same, and the configuration comes from the pipeline's files."""
    there = imported
    config = load(str(there / "config.json"))
    assert (config.name, config.process.name, config.sampler.x0.name) == ("ddpm_digits", "ddpm", "clip")
    assert config.sampler.step.ancestral.variance == "large"
    (ema, at), (params, _) = (workdir.read(there, shapes_there(there), averaged) for averaged in (True, False))
    assert at == 0
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(ema), jax.tree.leaves(params), strict=True))


@pytest.mark.slow
def test_the_card_says_where_figures_are_from(imported, tmp_path):
    there = shutil.copytree(imported, tmp_path / "run")
    (there / "metrics.jsonl").write_text('{"step": 5, "loss": 2.0}\n{"step": 5, "held_out_loss": 0.25}\n')
    row = {"name": "Frechet distance", "value": 3.5, "floor": 1.5, "note": "features of a classifier, key abc"}
    how = {"config": "mine", "step": 0, "seed": 4, "samples": 1000, "sampler": {}, "scaling": "centered"}
    (there / "distances.json").write_text(json.dumps(how | {"distances": [row]}))
    done("export", there, f"--out={tmp_path / 'out'}")
    card = json.loads((tmp_path / "out" / "model_card.json").read_text())
    assert card["metrics"] == [
        {"name": "held-out loss", "value": 0.25, "step": 5, "from": "metrics.jsonl"},
        row | {"step": 0, "seed": 4, "samples": 1000, "scaling": "centered", "from": "distances.json"},
    ]
    count = sum(a.size for a in load_file(UNET2D / FILE).values())
    assert card["weights"]["parameters"] == count
    assert card["weights"]["sha256"] == sha256(tmp_path / "out" / FILE)
    assert card["imported_from"]["sha256"] == sha256(UNET2D / FILE)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| held-out loss | 0.25 | 5 (another than the weights) |" in text and f"{count:,} parameters" in text
    assert "1000 samples, floor 1.5, features of a classifier, key abc | distances.json |" in text
    # Data and training of imported weights are not known: the configuration has only the preset's.
    assert card["name"] == "unet2d" and not {"data", "loss", "training"} & set(card)
    assert "ddpm_digits" not in text and "| data | not known here, scaled by centered |" in text

    lines = [
        '{"step": 0, "held_out_loss": 0.5}',
        '{"step": 1, "held_out_loss": NaN}',
        '{"step": 5, "held_out_loss": 0.2}',
    ]
    (there / "metrics.jsonl").write_text("\n".join([*lines, "3", ""]))
    (there / "distances.json").unlink()
    done("export", there, "--raw", f"--out={tmp_path / 'raw'}")
    found = json.loads((tmp_path / "raw" / "model_card.json").read_text())["metrics"]
    of = "for the average, not for these weights"
    assert found == [{"name": "held-out loss", "value": 0.5, "step": 0, "from": "metrics.jsonl", "of": of}]
    assert f"| 0.5 | 0 | {of} |" in (tmp_path / "raw" / "README.md").read_text()

    for damage in ({"distances": [{"name": "a"}]}, how | {"distances": [row | {"value": None}]}, {"distances": 3}):
        (there / "distances.json").write_text(json.dumps(damage))
        answered("export", there, f"--out={tmp_path / 'no'}", parts=["distances.json is damaged"])
    (there / "distances.json").unlink()
    record = json.loads((there / workdir.IMPORTED).read_text())
    for damage in ({"shape": 3}, {"shape": ["8", 8, 1]}, {"format": None}, {"dtypes": {"a": "object"}}, {"step": "0"}):
        (there / workdir.IMPORTED).write_text(json.dumps(record | damage))
        answered("export", there, f"--out={tmp_path / 'no'}", parts=[f"{workdir.IMPORTED} is damaged"])


def test_the_cifar_network_has_the_layout_of_google_s():
    """As many parameters as google/ddpm-cifar10-32, and attention in the same blocks."""
    theirs = pipeline.unet_config(UNet(), (32, 32, 3))
    assert theirs["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]
    assert theirs["up_block_types"] == ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
    net, shape = pipeline.unet_of(theirs | {"dropout": 0.1})
    assert (net, shape) == (UNet(), (32, 32, 3))
    entries, ours = unet.diffusers(net, shape), workdir.shapes_of(load("ddpm_cifar"), shape)
    names = {
        jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree_util.tree_leaves_with_path(ours)
    }
    assert names == {entry.ours for entry in entries} and len(entries) == len({entry.theirs for entry in entries})
    assert sum(leaf.size for leaf in jax.tree.leaves(ours)) == 35_746_307


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"flip_sin_to_cos": True}, ["flip_sin_to_cos=True", "False"]),
        ({"freq_shift": 0}, ["freq_shift=0", "1"]),
        ({"downsample_padding": 1}, ["downsample_padding=1"]),
        ({"norm_eps": 1e-5}, ["norm_eps=1e-05"]),
        ({"resnet_time_scale_shift": "spatial"}, ["resnet_time_scale_shift=spatial"]),
        ({"resnet_time_scale_shift": "scale_shift"}, ["attn_norm_num_groups=None: 2"]),  # the middle has no norm
        ({"attn_norm_num_groups": 4}, ["attn_norm_num_groups=4: 2"]),
        ({"resnet_time_scale_shift": []}, ["resnet_time_scale_shift=[]"]),
        ({"attention_head_dim": 3}, ["attention_head_dim=3", "divide"]),
        ({"attention_head_dim": 0}, ["attention_head_dim=0"]),
        ({"out_channels": 2}, ["out_channels=2", "in_channels=1"]),
        ({"block_out_channels": [4, 6]}, ["block_out_channels=[4, 6]"]),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, ["SkipDownBlock2D"]),
        ({"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, ["up_block_types", "attention"]),
        ({"num_class_embeds": 10}, ["num_class_embeds=10"]),
        ({"sample_size": None}, ["sample_size=None"]),
        ({"sample_size": 10**30}, ["sample_size=1000"]),
        ({"layers_per_block": 65}, ["layers_per_block=65"]),
        ({"norm_num_groups": 3}, ["norm_num_groups=3"]),
        ({"brand_new": "on"}, ["brand_new=on"]),
        ({"_class_name": "UNet2DConditionModel"}, ["UNet2DConditionModel"]),
        ({"block_out_channels": ["4", None]}, ["block_out_channels=4"]),
    ],
)
def test_a_network_that_is_none_of_ours_is_refused_by_its_option(changed, parts):
    theirs = json.loads((UNET2D / "unet" / "config.json").read_text())
    pipeline.unet_of(theirs)
    refused(lambda: pipeline.unet_of(theirs | changed), *parts)


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"beta_schedule": "laplace"}, ["beta_schedule=laplace", "sigmoid are known"]),
        ({"beta_schedule": "sigmoid", "_class_name": "DDIMScheduler"}, ["beta_schedule=sigmoid"]),
        ({"rescale_betas_zero_snr": True}, ["rescale_betas_zero_snr=True", "says nothing about x0", "v_prediction"]),
        ({"rescale_betas_zero_snr": "yes"}, ["rescale_betas_zero_snr=yes", "true or false"]),
        ({"trained_betas": [0.1, 1.0], "num_train_timesteps": 2}, ["a last beta of 1", "v_prediction"]),
        ({"trained_betas": [1.0, 0.1], "num_train_timesteps": 2}, ["trained_betas"]),
        ({"thresholding": 1}, ["thresholding=1", "true or false"]),
        ({"thresholding": True, "dynamic_thresholding_ratio": 1.5}, ["dynamic_thresholding_ratio=1.5", "at most 1"]),
        ({"thresholding": True, "sample_max_value": 0.5}, ["sample_max_value=0.5", "at least 1"]),
        ({"prediction_type": "flow"}, ["prediction_type=flow"]),
        ({"variance_type": "learned_range"}, ["variance_type=learned_range"]),
        ({"clip_sample_range": 0}, ["clip_sample_range=0", "above 0"]),
        ({"trained_betas": [0.1, 1.5]}, ["trained_betas"]),
        ({"trained_betas": [0.1, 0.2], "num_train_timesteps": 3}, ["trained_betas", "3 numbers"]),
        ({"prediction_type": []}, ["prediction_type=[]"]),
        ({"variance_type": {}}, ["variance_type={}"]),
        ({"clip_sample": "no"}, ["clip_sample=no", "true or false"]),
        ({"beta_end": "0.02"}, ["beta_end"]),
        ({"_class_name": "PNDMScheduler"}, ["PNDMScheduler", "--config"]),
    ],
)
def test_a_scheduler_that_is_none_of_ours_is_refused_by_its_option(changed, parts):
    theirs = json.loads((UNET2D / "scheduler" / "scheduler_config.json").read_text())
    refused(lambda: pipeline.set_scheduler(load("ddpm_digits"), theirs | changed), *parts)


@pytest.mark.parametrize(
    "changed",
    [
        {"beta_end": 0.01, "num_train_timesteps": 50},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 40, "prediction_type": "v_prediction"},
        {"trained_betas": [0.1, 0.2, 0.35], "num_train_timesteps": 3, "clip_sample": False},
        {"prediction_type": "sample", "variance_type": "fixed_small"},
        {"clip_sample_range": 2.5},
        {"thresholding": True, "clip_sample": False, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 3.0},
    ],
)
def test_a_scheduler_in_and_out_again(changed):
    theirs = json.loads((UNET2D / "scheduler" / "scheduler_config.json").read_text()) | changed
    config = load("ddpm_digits")
    pipeline.set_scheduler(config, theirs)
    ours = pipeline.scheduler_config(config)
    assert {key: theirs[key] for key in ours} == ours


def test_scaled_linear_is_its_betas():
    config = load("ddpm_digits")
    pipeline.set_scheduler(
        config, {"beta_schedule": "scaled_linear", "beta_start": 0.01, "beta_end": 0.04, "num_train_timesteps": 3}
    )
    np.testing.assert_allclose(config.process.betas["values"], [0.01, 0.15**2, 0.04], rtol=1e-12)


def parity():
    """benchmarks/parity/weights.py, which needs PyTorch and diffusers."""
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    spec = importlib.util.spec_from_file_location("parity_weights", DATA.parents[1] / "benchmarks/parity/weights.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_reference_numbers_are_those_of_diffusers():
    held = arrays("schedulers.npz")
    found = parity().schedulers()
    assert set(found) == set(held)
    for name in held:
        np.testing.assert_allclose(found[name], held[name], atol=1e-6, err_msg=name)


SCHEDULERS = {
    "ddpm": {"clip_sample": False},
    "large": {"variance_type": "fixed_large"},
    "sigmoid": {"beta_schedule": "sigmoid", "prediction_type": "sample", "clip_sample_range": 2.0},
    "dynamic": {"thresholding": True, "dynamic_thresholding_ratio": 0.75, "sample_max_value": 1.5},
    "capped": {"thresholding": True},
    "zero": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "zero_cosine": {
        "rescale_betas_zero_snr": True,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "sample",
    },
    "zero_scaled": {
        "_class_name": "DDIMScheduler",
        "rescale_betas_zero_snr": True,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
    },
    "ddim": {"_class_name": "DDIMScheduler", "clip_sample_range": 0.5},
    "ddim_dynamic": {"_class_name": "DDIMScheduler", "thresholding": True, "sample_max_value": 100.0},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in ("sigmoid", "dynamic", "zero", "ddim")))
        for name in SCHEDULERS
    ],
)
def test_every_step_is_that_of_diffusers(name, monkeypatch):
    """From the same x, output of a network and noise. At level 0 the step ends in the estimate of x0."""
    held = arrays("schedulers.npz")
    config = load("ddpm_digits")
    pipeline.set_scheduler(config, {"num_train_timesteps": 8, "beta_start": 0.01, "beta_end": 0.3} | SCHEDULERS[name])
    process, step = build(PROCESSES, config.process), build(STEPS, config.sampler.step)
    hold = build(X0S, config.sampler.x0, low=-1.0, high=1.0)
    for t in range(8):
        x, output, noise = (jnp.asarray(shown(held[part][t])) for part in ("x", "output", "noise"))
        denoiser = hold(from_network(process, config.target, lambda x, t, output=output: output))
        times = jnp.full(2, t)
        found = denoiser(x, times).x0
        if t:
            monkeypatch.setattr(steps, "normal", lambda *_, noise=noise: noise)
            found, _ = step.step(denoiser, jax.random.key(0), x, times, times - 1, ())
        np.testing.assert_allclose(found, shown(held[name][t]), atol=2e-5, err_msg=f"level {t}")


def test_ddim_that_limits_x0_is_imported_with_a_sentence():
    config = load("ddpm_digits")
    for theirs, said in (
        ({"_class_name": "DDIMScheduler"}, "use_clipped_model_output=True"),
        ({"_class_name": "DDIMScheduler", "clip_sample": False}, ""),
        ({"_class_name": "DDPMScheduler"}, ""),
    ):
        pipeline.set_scheduler(config, theirs)
        note = pipeline.note_of(config, theirs)
        assert said in note and bool(said) == bool(note)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"process.name": "ncsn"}, ["config.process.name=ncsn", "ddpm, cosine or betas"]),
        ({"target": "edm"}, ["config.target=edm"]),
        ({"net.condition": "logsnr"}, ["config.net.condition=logsnr"]),
        ({"labels": True}, ["config.labels=True"]),
        ({"learned_variance": True}, ["config.learned_variance=True"]),
        ({"energy": True}, ["config.energy=True"]),
        ({"scaling.name": "unit"}, ["config.scaling.name=unit", "[-1, 1]"]),
    ],
)
def test_what_a_pipeline_cannot_be_is_not_exported(changes, parts):
    config = load("ddpm_digits")
    pipeline.scheduler_config(config)
    for key, value in changes.items():
        config.update_from_flattened_dict({key: value})
    refused(lambda: pipeline.scheduler_config(config), *parts)


def test_all_that_an_export_or_an_import_cannot_be_is_said_at_once():
    config = load("ddpm_digits")
    config.target, config.net.condition, config.scaling.name = "edm", "logsnr", "unit"
    with pytest.raises(UsageError) as caught:
        pipeline.scheduler_config(config)
    assert [line.partition(":")[0] for line in caught.value.args] == [
        "config.net.condition=logsnr",
        "config.scaling.name=unit",
        "config.target=edm",
    ]
    theirs = json.loads((UNET2D / "unet" / "config.json").read_text())
    with pytest.raises(UsageError) as caught:
        pipeline.unet_of(theirs | {"num_class_embeds": 10, "brand_new": "on"})
    assert [line.partition(":")[0] for line in caught.value.args] == ["num_class_embeds=10", "brand_new=on"]


@pytest.mark.slow
def test_what_breaks_is_said_in_one_line_and_leaves_nothing(tmp_path):
    theirs = shutil.copytree(UNET2D, tmp_path / "theirs")
    target = tmp_path / "new" / "run"
    raw, arrays = (UNET2D / FILE).read_bytes(), load_file(UNET2D / FILE)

    def cannot(*parts, path=theirs, flags=()):
        answered("import", path, f"--workdir={target}", *flags, parts=parts)
        assert not list(tmp_path.glob("new/*")) and not list(tmp_path.glob("new/.*"))

    cannot("there is no", path=tmp_path / "nothing")
    cannot("not a diffusers folder", path=tmp_path)
    cannot(
        "config.net.name=mlp",
        flags=("--config=ddpm_digits", "--config.net.name=mlp"),
    )
    cannot(
        "config.net.unet.channels=", "config.json says 4", flags=("--config=ddpm_digits", "--config.net.unet.groups=2")
    )
    cannot("ddpm_digitz", flags=("--config=ddpm_digitz",))
    for cut in (raw[:-1], raw[:100], raw[:7], b""):
        (theirs / FILE).write_bytes(cut)
        cannot(source.WEIGHTS, "safetensors", "get it again")
    name = "mid_block.resnets.1.conv2.bias"
    for other, parts in (
        (arrays | {name: np.full_like(arrays[name], np.nan)}, ["not finite", name, "1 arrays"]),
        (arrays | {name: np.zeros(5, np.float32)}, [name, "is 5", "is 8"]),
        (arrays | {name: np.zeros(8, np.int32)}, [name, "int32"]),
        (arrays | {"another": np.zeros(3)}, ["another", "does not have"]),
        ({key: a for key, a in arrays.items() if key != name}, [f"no {name}", "1 of"]),
        (arrays | {name: np.full(8, 0.1)}, [name, "float64", "float32"]),
    ):
        save_file(other, theirs / FILE)
        cannot(*parts)
    (theirs / FILE).rename(theirs / "unet" / "diffusion_pytorch_model.bin")
    cannot(".bin", "pickle")
    (theirs / "unet" / "config.json").write_text("[" * 100_000)
    cannot("config.json", "damaged")


@pytest.mark.slow
def test_a_folder_that_is_not_empty_is_left_alone(imported, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    answered("import", UNET2D, f"--workdir={tmp_path}", parts=["not empty", "--workdir"])
    answered("export", imported, f"--out={tmp_path}", parts=["not empty", "--out"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    done("export", imported, f"--out={tmp_path / 'empty'}")
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == [
        *("README.md", "model_card.json", "model_index.json", "scheduler", "unet")
    ]


@pytest.mark.slow
def test_the_scheduler_is_found_where_diffusers_finds_it(imported, tmp_path, monkeypatch):
    """Either beside the model's config.json, as in the first models of the hub, or in a folder beside the model's."""
    flat = shutil.copytree(UNET2D / "unet", tmp_path / "flat")
    shutil.copy(UNET2D / "scheduler" / "scheduler_config.json", flat)
    for path, name in ((flat, "one"), (UNET2D / "unet", "two")):
        done("import", path, f"--workdir={tmp_path / name}")
        ours, theirs = (workdir.configuration(folder) for folder in (tmp_path / name, imported))
        assert theirs.sampler.step.ancestral.variance == "large"
        assert (ours.process, ours.sampler) == (theirs.process, theirs.sampler)
    (flat / "scheduler_config.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert "no scheduler_config.json" in done("import", "flat", "--workdir=none")
    (flat / source.WEIGHTS).rename(flat / "diffusion_pytorch_model.fp16.safetensors")
    answered(
        "import", flat, f"--workdir={tmp_path / 'x'}", parts=["fp16.safetensors", f"rename it to {source.WEIGHTS}"]
    )
    answered("import", imported, f"--workdir={tmp_path / 'x'}", parts=["a run of scoregen already"])
    answered("import", "their/model", f"--workdir={tmp_path / 'x'}", parts=["huggingface-cli download their/model"])


def test_a_configuration_of_other_data_is_refused(tmp_path):
    """CIFAR-10's shape is known without its files."""
    theirs = shutil.copytree(UNET2D, tmp_path / "theirs")
    options = json.loads((theirs / "unet" / "config.json").read_text()) | {"sample_size": 16}
    (theirs / "unet" / "config.json").write_text(json.dumps(options))
    fields = ("channels=4", "multipliers=(1,2)", "blocks=1", "attention=(8,)", "groups=2")
    flags = [f"--config.net.unet.{field}" for field in fields]
    for name, shape in (("ddpm_digits", "8x8x1"), ("ddpm_cifar", "32x32x3")):
        answered(
            "import", theirs, f"--workdir={tmp_path / 'run'}", f"--config={name}", *flags, parts=[shape, "16x16x1"]
        )
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.slow
def test_a_sampler_without_noise_stays_one(tmp_path):
    """The options of DDIM for fewer steps are exported as they were imported."""
    theirs = shutil.copytree(UNET2D, tmp_path / "theirs")
    file = theirs / "scheduler" / "scheduler_config.json"
    options = {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "steps_offset": 1}
    file.write_text(json.dumps(json.loads(file.read_text()) | options | {"set_alpha_to_one": False}))
    done("import", theirs, f"--workdir={tmp_path / 'run'}")
    assert workdir.configuration(tmp_path / "run").sampler.step.ancestral.eta == 0
    done("export", tmp_path / "run", f"--out={tmp_path / 'out'}")
    after = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert after.items() >= (options | {"set_alpha_to_one": False}).items()
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert (index["_class_name"], index["scheduler"][1]) == ("DDIMPipeline", "DDIMScheduler")
    assert "DDIMPipeline.from_pretrained" in (tmp_path / "out" / "README.md").read_text()


ADM = {"downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "norm_eps": 1e-5}


@pytest.mark.parametrize(
    ("changed", "fields"),
    [
        (ADM | {"attention_head_dim": 4}, {"form": "adm", "head_channels": 4}),
        (
            ADM | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2, "attention_head_dim": 2},
            {"form": "adm", "scale_shift": True, "head_channels": 2},
        ),
        ({"attention_head_dim": 8}, {"head_channels": 0}),  # one head, in other words
    ],
)
def test_other_forms_in_and_out_again(changed, fields):
    theirs = json.loads((UNET2D / "unet" / "config.json").read_text())
    net, shape = pipeline.unet_of(theirs | changed)
    assert {key: getattr(net, key) for key in fields} == fields
    again = pipeline.unet_config(net, shape)
    assert pipeline.unet_of(again) == (net, shape)
    same = {key: value for key, value in changed.items() if (key, value) != ("attention_head_dim", 8)}
    assert {key: again[key] for key in same} == same
    refused(lambda: pipeline.unet_config(net.clone(head_channels=0, attention_heads=2), shape), "attention_heads=2")


@pytest.mark.slow
def test_only_what_is_new_is_removed(tmp_path, monkeypatch):
    """A folder under the temporary name stays: another import or the user may own it."""
    (tmp_path / f".run.{os.getpid()}").mkdir()
    answered("import", UNET2D, f"--workdir={tmp_path / 'run'}", "--format=ddpm", parts=["--format"])
    done("import", UNET2D, f"--workdir={tmp_path / 'run'}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".run.{os.getpid()}", "run"]
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o755
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    done("export", "../run", "--out=.")
    assert Path("model_index.json").is_file() and 'from_pretrained("here")' in Path("README.md").read_text()


def test_ctrl_c_leaves_nothing(tmp_path):
    program = f"""
import os, signal
from pathlib import Path
from scoregen.app.command import leave_at_once
from scoregen.contrib.weights.workdir import fresh_folder
leave_at_once()
with fresh_folder(Path({str(tmp_path / "run")!r}), "--workdir") as folder:
    (folder / "half").write_text("half")
    assert len(list(folder.parent.iterdir())) == 1
    os.kill(os.getpid(), signal.SIGINT)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=100).returncode == 128 + signal.SIGINT
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_full_disk_is_one_line(tmp_path):
    """No file may exceed 8 kB. Orbax writes in threads, which would print errors of their own."""
    line = f"ulimit -f 8; exec {sys.executable} -m scoregen weights import {UNET2D} --workdir={tmp_path / 'run'}"
    found = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=200)
    assert found.returncode == 2 and found.stderr.count("\n") == 1
    assert f"cannot write to {tmp_path / 'run'}: " in found.stderr and "choose another --workdir" in found.stderr
    assert not list(tmp_path.iterdir())


def test_a_terminal_obeys_no_name(tmp_path):
    theirs = shutil.copytree(UNET2D, tmp_path / "theirs")
    options = json.loads((theirs / "unet" / "config.json").read_text())
    (theirs / "unet" / "config.json").write_text(json.dumps(options | {"a\x1b[2J\nb": 1}))
    line = answered("import", theirs, f"--workdir={tmp_path / 'run'}", parts=["a?[2J b=1"])
    assert "\x1b" not in line
    save_file({"a\x1b[2J\nb": np.zeros(1)}, tmp_path / "a.safetensors")
    assert "\x1b" not in done("inspect", tmp_path / "a.safetensors")
    answered("inspect", "/dev/zero", parts=["neither a file nor a folder"])


def test_a_full_disk_leaves_nothing(imported, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(command, "_write_safetensors", full)
    answered("export", imported, f"--out={tmp_path / 'out'}", parts=["No space left", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["imprt", "x"], ["'imprt'", "did you mean 'import'"]),
        (["inspect"], ["inspect: a path is needed", "--help"]),
        (["import", "x"], ["--workdir=FOLDER"]),
        (["export", "x"], ["--out=FOLDER"]),
        (["export", "x", "--out=y"], ["x", "config.json"]),
        (["export", "x", "--out=y", "--stpe=3"], ["--stpe", "--step"]),
        (["export", "x", "--out=y", "--config=ddpm_digits"], ["leave the flag out"]),
        (["import", "x", "--workdir=y", "--config.seed=1"], ["--config.seed", "--config"]),
        (["inspect", "x"], ["there is no x"]),
    ],
)
def test_the_command_line_says_no(argv, parts):
    answered(*argv, parts=parts)


def test_all_faults_of_a_command_line_are_said_at_once():
    for argv, parts in (
        (["import", "--frmat=x"], ["import: a path is needed", "--workdir=FOLDER", "did you mean '--format'"]),
        (
            ["export", "--step=-1", "--best", "--config=nothing"],
            ["export: a path is needed", "--out", "--config: ", "--step=N", "no preset"],
        ),
        (["inspect", "a", "b", "--config.seed=x"], ["'b'", "--config.seed without --config"]),
    ):
        code, out, err = main(*argv)
        lines = err.splitlines()
        assert (code, out, len(lines)) == (2, "", len(parts)), err
        assert all(line.startswith("scoregen: ") and part in line for line, part in zip(lines, parts, strict=True)), err


@pytest.mark.slow
def test_inspect_says_what_it_would_be(imported, tmp_path):
    assert "import PATH" in done("-h") and done() == done("--help")
    out = done("inspect", UNET2D)
    assert re.search(r"mid_block.attentions.0.to_q.weight +float16 +8x8\n", out)
    assert "`import` would give the net unet (" in out and "multipliers=(1, 2)" in out and "not finite" not in out
    out = done("inspect", UNET2D / FILE)
    assert "`import` would give nothing" in out and "config.json" in out
    out = done("inspect", imported)
    assert "ema.net.params.conv_in.kernel" in out and "a run of scoregen, step 0" in out
    count = sum(a.size for a in load_file(UNET2D / FILE).values())
    assert f"{count:,} parameters" in out
    arrays = load_file(UNET2D / FILE)
    arrays["conv_out.bias"] = np.full(1, np.inf, np.float32)
    save_file(arrays, tmp_path / "bad.safetensors")
    assert "1 of the arrays hold weights that are not finite" in done("inspect", tmp_path / "bad.safetensors")
    out = done("inspect", DATA / "tiny.pth")
    assert "torch, 8 arrays" in out and "7 of the arrays also have an average; it is from step 7" in out


# --- files of PyTorch


def test_a_file_of_pytorch_without_pytorch():
    """Every type, strides and an offset, DataParallel's prefix and a buffer without an average are read exactly."""
    held = arrays("tiny.npz")
    with source.opened(DATA / "tiny.pth") as found:
        assert found.step == 7 and "sigmas" in found.arrays and "sigmas" not in found.averaged
        assert {f"ema.{name}" for name in found.averaged} | found.averaged == set(held)
        for name in found.averaged:
            for averaged in (False, True):
                array = found.read(name, averaged)
                want = held["ema." * averaged + name]
                assert array.shape == want.shape == found.arrays[name].shape
                np.testing.assert_array_equal(array.astype(np.float64), want)
        kinds = {name.split(".")[1]: found.arrays[name].dtype for name in found.averaged}
    halves = {"f16": "float16", "bf16": "bfloat16", "f64": "float64"}
    assert kinds == dict.fromkeys(("a", "turned", "scalar", "empty"), "float32") | halves


class Calls:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "call",
    [
        lambda path: Calls(os.system, f"touch {path}"),
        lambda path: Calls(eval, f"__import__('os').mkdir({str(path)!r})"),
        lambda path: Calls(exec, f"import os; os.mkdir({str(path)!r})"),
        lambda path: Calls(os.mkdir, str(path)),
        lambda path: Calls(getattr, Calls(__import__, "os"), "system"),
    ],
)
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, call, protocol):
    made = tmp_path / "made"
    pickled = pickle.dumps({"model": {"a": call(made)}, "step": 1}, protocol)
    if call(made).call[0] is not getattr:  # the attack works with `pickle` itself
        pickle.loads(pickled)
        assert made.exists()
        made.rmdir() if made.is_dir() else made.unlink()
    hostile = archive(tmp_path / "hostile.pth", pickled)
    for argv in (("import", hostile, f"--workdir={tmp_path / 'run'}"), ("inspect", hostile)):
        answered(*argv, parts=["hostile.pth", "weights do not need", "nothing of it was run"])
    (tmp_path / "bare.pth").write_bytes(pickled)
    answered("inspect", tmp_path / "bare.pth", parts=["bare.pth"])
    assert not made.exists() and not (tmp_path / "run").exists()


def test_averages_that_are_not_the_model_s_are_refused(tmp_path):
    shadow = b"}" + text("shadow_params") + b"]" + tensor() + b"a" + tensor() + b"as"
    whole = state(tensor())[:-1] + text("ema") + shadow + b"s."
    with (
        pytest.raises(source.UsageError, match="2 averages are not those of the 1 arrays"),
        source.opened(archive(tmp_path / "a.pth", whole)),
    ):
        pass


def test_checkpoints_of_ncsn_and_ncsnv2(tmp_path):
    """NCSN's are [state dict, optimizer], and NCSNv2's also have epoch, step, and averages by name."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.random(3).astype(np.float32) for name in ("a", "b")}
    averages = {name: array + 1 for name, array in reversed(arrays.items())}
    model = {f"module.{name}": array for name, array in (arrays | {"sigmas": np.ones(2, np.float32)}).items()}
    optimizer = {"state": {2**47 - 8: {"step": 5}}, "param_groups": [{"params": [2**47 - 8]}]}
    with source.opened(saved(tmp_path / "ncsn.pth", [model, optimizer])) as found:
        assert (found.step, found.averaged, sorted(found.arrays)) == (0, frozenset(), ["a", "b", "sigmas"])
        np.testing.assert_array_equal(found.read("b", False), arrays["b"])
    with source.opened(saved(tmp_path / "ncsnv2.pth", [model, optimizer, 3, 700, averages])) as found:
        assert (found.step, found.averaged) == (700, {"a", "b"})
        for name, array in arrays.items():
            np.testing.assert_array_equal(found.read(name, False), array)
            np.testing.assert_array_equal(found.read(name, True), array + 1)

    def read(*states):
        with source.opened(saved(tmp_path / "bad.pth", list(states))):
            pass

    del averages["a"]
    refused(lambda: read(model, optimizer, 3, 700, averages), "bad.pth", "1 averages", "3 arrays")
    refused(lambda: read(model, optimizer, 3, 700, averages | {"c": arrays["a"]}), "2 averages", "3 arrays")
    refused(lambda: read(model, optimizer, 3, 700, [4]), "no averages by name")
    refused(lambda: read(optimizer, model), "no state dict", "first in a list")
    refused(read, "no state dict")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ncsn", "ncsnv2"])
def test_the_authors_checkpoints_become_runs(tmp_path, name):
    """The files of ermongroup/ncsn and ncsnv2 at full size, in the layout of before PyTorch 1.6."""
    it = FORMATS[name]
    entries = it.layout(network(it.preset()), it.shape)
    ours = workdir.shapes_of(it.preset(), it.shape)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32), ours)
    theirs = to_theirs(entries, params)
    averages = {key: array + 1 for key, array in theirs.items()}
    states = [{f"module.{key}": array for key, array in theirs.items()}, {"state": {}, "param_groups": []}]
    if name == "ncsnv2":
        states[0]["module.sigmas"] = np.ones(232, np.float32)
        states += [3, 700, averages]
    done("import", saved(tmp_path / "checkpoint.pth", states), f"--workdir={tmp_path / 'run'}")
    for averaged in (False, True):
        found, step = workdir.read(tmp_path / "run", ours, averaged)
        want = to_ours(entries, averages) if averaged and name == "ncsnv2" else params
        jax.tree.map(np.testing.assert_array_equal, found, want)
        assert step == 700 * (name == "ncsnv2")


# --- score_sde's ddpm


def test_score_sde_s_ddpm_lies_in_ours_array_by_array():
    """All our arrays go there and back unchanged. On the way up there is attention once per level."""
    net = UNet(channels=32, multipliers=(1, 2), blocks=1, attention=(4,), attention_last=True)
    config = load("ddpm_digits")
    for field in config.net.unet:
        config.net.unet[field] = getattr(net, field)
    ours = workdir.shapes_of(config, (8, 8, 1))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32), ours)
    entries = unet.score_sde(net, (8, 8, 1))
    theirs = to_theirs(entries, params)
    back = to_ours(entries, theirs)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True))
    assert {key for key in params if key.endswith("attention")} == {
        *("down1_0_attention", "middle_attention", "up1_1_attention")
    }
    # Their numbers: 0, 1 time; 2 in; 3 block; 4 halve; 5, 6 block, attention; 7 8 9 middle; 10, 11, 12; 13 double; ...
    assert {"all_modules.6.NIN_3.W", "all_modules.12.NIN_0.W", "all_modules.13.Conv_0.weight"} <= set(theirs)
    assert theirs["all_modules.17.weight"].shape == (1, 32, 3, 3)


# --- compared with the libraries themselves


def shown(x: np.ndarray) -> np.ndarray:
    """Their images, [B, C, H, W], in our order, [B, H, W, C]."""
    return np.asarray(x).transpose(0, 2, 3, 1)


def theirs_alive(options: dict, folder: Path, **scheduler) -> Any:
    """A pipeline of diffusers with parameters of unit order, which is also saved in `folder`."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    model, generator = diffusers.UNet2DModel(**options), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    pipe = diffusers.DDPMPipeline(model.eval(), diffusers.DDPMScheduler(**scheduler))
    pipe.save_pretrained(folder)
    return pipe


def ours_of(folder: Path) -> tuple[UNet, Any, tuple[int, ...]]:
    config = workdir.configuration(folder)
    shape = workdir.example_shape(folder, config)
    return UNet(**config.net.unet.to_dict()), workdir.read(folder, workdir.shapes_of(config, shape))[0], shape


SMALL = json.loads((UNET2D / "unet" / "config.json").read_text()) | {
    "block_out_channels": [16, 32],
    "norm_num_groups": 8,
}


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "whole", "heads", "scale_shift", "defaults"])
def test_diffusers_itself(tmp_path, size):
    """Outputs and files agree after import and export. "whole" is google/ddpm-cifar10-32, with 35.7 million parameters.

    Diffusers' own defaults, but for the sizes, are the form of ADM with heads of 8 channels.
    """
    torch = pytest.importorskip("torch")
    shifted = ADM | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8, "attention_head_dim": 16}
    unsaid = {*ADM, "attention_head_dim"}
    options = {
        "whole": pipeline.unet_config(UNet(), (32, 32, 3)),
        "small": SMALL,
        "heads": SMALL | {"attention_head_dim": 8},
        "scale_shift": SMALL | shifted,
        "defaults": {key: value for key, value in SMALL.items() if key not in unsaid},
    }[size]
    pipe = theirs_alive({key: value for key, value in options.items() if key[0] != "_"}, tmp_path / "theirs")
    done("import", tmp_path / "theirs", f"--workdir={tmp_path / 'run'}")
    net, params, shape = ours_of(tmp_path / "run")
    count = sum(p.numel() for p in pipe.unet.parameters())
    assert sum(a.size for a in jax.tree.leaves(params)) == count and (size != "whole" or count == 35_746_307)
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((3, *shape), np.float32), np.array([0, 321, 999])
    got = jax.jit(net.apply)({"params": params}, x, Cond(t.astype(np.float32)))
    with torch.no_grad():
        want = shown(pipe.unet(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(t)).sample.numpy())
    assert want.std() > 0.1
    np.testing.assert_allclose(got, want, atol=1e-4 * want.std(), rtol=1e-4)
    done("export", tmp_path / "run", f"--out={tmp_path / 'out'}")
    assert (tmp_path / "out" / FILE).read_bytes() == (tmp_path / "theirs" / FILE).read_bytes()


@pytest.mark.slow
def test_ddim_ends_in_the_same_image(tmp_path):
    """50 steps of diffusers' DDIMScheduler with the export, and of ours, from the same noise."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    theirs_alive({key: value for key, value in SMALL.items() if key[0] != "_"}, tmp_path / "theirs", clip_sample=False)
    done("import", tmp_path / "theirs", f"--workdir={tmp_path / 'run'}")
    done("export", tmp_path / "run", f"--out={tmp_path / 'out'}")
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out")
    scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(50)
    net, params, shape = ours_of(tmp_path / "run")
    start = np.random.default_rng(1).standard_normal((2, *shape)).astype(np.float32)
    x = torch.tensor(start.transpose(0, 3, 1, 2))
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipe.unet(x, t).sample, t, x, eta=0.0).prev_sample

    process = ddpm()

    def apply(x, t) -> Any:
        return net.apply({"params": params}, x, Cond(CONDITIONS["index"](process, t)))

    sampler = Sampler(Ancestral(0.0), grid=Listed(tuple(int(t) for t in scheduler.timesteps)))
    denoiser = from_network(process, "eps", apply)
    final, _ = sampler.trajectory(denoiser, jax.random.key(0), start.shape, start=jnp.asarray(start))
    # Relative to the image's deviation: no clip hides a difference, and an untrained network ends far from [-1, 1].
    np.testing.assert_allclose(final / np.std(final), shown(x.numpy()) / np.std(final), atol=1e-3)
    assert np.std(final) > 1


@pytest.mark.slow
def test_diffusers_samples_the_export(imported, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    done("export", imported, f"--out={tmp_path / 'out'}")
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    images = pipe(batch_size=2, num_inference_steps=10, output_type="np").images
    assert images.shape == (2, 8, 8, 1) and 0 <= images.min() < images.max() <= 1
    assert pipe.scheduler.config.variance_type == "fixed_large"


def song_s_ddpm(torch: Any, nf: int, mult: tuple[int, ...], blocks: int, attention: tuple[int, ...], size: int) -> Any:
    """score_sde's `ddpm` as its state dict and its formulas have it: modules numbered as they are applied."""
    nn, f = torch.nn, torch.nn.functional

    class Pointwise(nn.Module):
        def __init__(self, into, out):
            super().__init__()
            self.W, self.b = nn.Parameter(torch.zeros(into, out)), nn.Parameter(torch.zeros(out))

        def forward(self, x):
            return torch.einsum("bihw,io->bohw", x, self.W) + self.b[:, None, None]

    def norm(width):
        return nn.GroupNorm(32, width, eps=1e-6)

    class Block(nn.Module):
        def __init__(self, into, out):
            super().__init__()
            self.GroupNorm_0, self.GroupNorm_1 = norm(into), norm(out)
            self.Conv_0, self.Conv_1 = nn.Conv2d(into, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
            self.Dense_0 = nn.Linear(4 * nf, out)
            if into != out:
                self.NIN_0 = Pointwise(into, out)

        def forward(self, x, e):
            h = self.Conv_0(f.silu(self.GroupNorm_0(x))) + self.Dense_0(f.silu(e))[:, :, None, None]
            h = self.Conv_1(f.silu(self.GroupNorm_1(h)))
            return h + (self.NIN_0(x) if hasattr(self, "NIN_0") else x)

    class Attention(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.GroupNorm_0 = norm(width)
            for i in range(4):
                setattr(self, f"NIN_{i}", Pointwise(width, width))

        def forward(self, x):
            q, k, v = (getattr(self, f"NIN_{i}")(self.GroupNorm_0(x)).flatten(2) for i in range(3))
            weights = torch.softmax(q.transpose(1, 2) @ k / q.shape[1] ** 0.5, -1)
            return x + self.NIN_3((v @ weights.transpose(1, 2)).reshape(x.shape))

    class Resample(nn.Module):
        def __init__(self, width, halve):
            super().__init__()
            self.halve = halve
            self.Conv_0 = nn.Conv2d(width, width, 3, stride=2 if halve else 1, padding=0 if halve else 1)

        def forward(self, x):
            return self.Conv_0(f.pad(x, (0, 1, 0, 1)) if self.halve else f.interpolate(x, scale_factor=2.0))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("sigmas", torch.linspace(50, 0.01, 7))
            self.all_modules = nn.ModuleList(
                [nn.Linear(nf, 4 * nf), nn.Linear(4 * nf, 4 * nf), nn.Conv2d(1, nf, 3, padding=1)]
            )
            self.plan = []
            width, kept, last = nf, [nf], len(mult) - 1

            def add(module, take=False, keep=False):
                self.all_modules.append(module)
                self.plan.append((take, keep))

            for i, m in enumerate(mult):
                attends = size >> i in attention
                for _ in range(blocks):
                    add(Block(width, m * nf), keep=not attends)
                    width = m * nf
                    if attends:
                        add(Attention(width), keep=True)
                    kept.append(width)
                if i < last:
                    add(Resample(width, True), keep=True)
                    kept.append(width)
            add(Block(width, width))
            add(Attention(width))
            add(Block(width, width))
            for i in reversed(range(len(mult))):
                for _ in range(blocks + 1):
                    add(Block(width + kept.pop(), mult[i] * nf), take=True)
                    width = mult[i] * nf
                if size >> i in attention:
                    add(Attention(width))
                if i:
                    add(Resample(width, False))
            self.all_modules.extend([norm(width), nn.Conv2d(width, 1, 3, padding=1)])

        def forward(self, x, t):
            modules = list(self.all_modules)
            angle = t[:, None] * torch.exp(-np.log(1e4) * torch.arange(nf // 2) / (nf // 2 - 1))
            e = modules[1](f.silu(modules[0](torch.cat([angle.sin(), angle.cos()], 1))))
            h = modules[2](x)
            kept = [h]
            for module, (take, keep) in zip(modules[3:-2], self.plan, strict=True):
                h = torch.cat([h, kept.pop()], 1) if take else h
                h = module(h, e) if isinstance(module, Block) else module(h)
                if keep:
                    kept.append(h)
            return modules[-1](f.silu(modules[-2](h)))

    torch.manual_seed(0)
    net = nn.DataParallel(Net())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(
                torch.randn(parameter.shape) * (0.5 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
            )
    return net.eval()


@pytest.mark.slow
def test_a_checkpoint_of_score_sde_s_ddpm(tmp_path):
    """Written by PyTorch, with DataParallel, sigmas and optimizer: parameters and average give the same outputs."""
    torch = pytest.importorskip("torch")
    theirs = song_s_ddpm(torch, 32, (1, 2), 1, (4,), 8)
    shadow = [parameter.detach() * 1.1 for parameter in theirs.parameters()]
    whole = {"model": theirs.state_dict(), "step": 9, "optimizer": torch.optim.Adam(theirs.parameters()).state_dict()}
    whole |= {"ema": {"decay": 0.9999, "num_updates": 9, "shadow_params": shadow}}
    torch.save(whole, tmp_path / "checkpoint.pth")
    fields = {
        "channels": 32,
        "multipliers": "(1,2)",
        "blocks": 1,
        "attention": "(4,)",
        "groups": 32,
        "attention_last": True,
    }
    flags = [f"--config.net.unet.{key}={value}" for key, value in fields.items()]
    done("import", tmp_path / "checkpoint.pth", f"--workdir={tmp_path / 'run'}", "--config=ddpm_digits", *flags)
    config = workdir.configuration(tmp_path / "run")
    net = UNet(**config.net.unet.to_dict())
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((2, 8, 8, 1), np.float32), np.array([3.0, 700.0], np.float32)
    apply = jax.jit(net.apply)
    for averaged in (False, True):
        params, step = workdir.read(tmp_path / "run", workdir.shapes_of(config, (8, 8, 1)), averaged)
        assert step == 9
        if averaged:
            with torch.no_grad():
                for parameter, average in zip(theirs.parameters(), shadow, strict=True):
                    parameter.copy_(average)
        with torch.no_grad():
            want = shown(theirs.module(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(t)).numpy())
        assert want.std() > 0.1
        np.testing.assert_allclose(apply({"params": params}, x, Cond(t)), want, atol=1e-4 * want.std(), rtol=1e-4)


# --- the other networks of score_sde


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_known_by_its_arrays_and_has_all_of_ours(name):
    it = FORMATS[name]
    config = it.preset()
    entries = it.layout(network(config), it.shape)
    ours = jax.tree_util.tree_leaves_with_path(workdir.shapes_of(config, it.shape))
    paths = [".".join(key.key for key in path) for path, _ in ours]
    assert sorted(entry.ours for entry in entries) == sorted(paths)
    arrays = {entry.theirs: source.Array("float32", ()) for entry in entries}
    found = source.Source("torch", arrays | dict.fromkeys(it.buffers, source.Array("float32", ())), lambda *_: None)
    assert source.fitting(found, None, "") == name
    assert source.fitting(found, config, "") == name  # fixed weights distinguish formats of one network


@pytest.mark.slow
def test_ncsnpp_comes_in_as_the_noise():
    """The last layer has the opposite sign of ours in score_sde's NCSN++, and our sign in its DDPM++, for VP."""
    last = {
        name: FORMATS[name].layout(network(FORMATS[name].preset()), (32, 32, 3))[-1] for name in ("ncsnpp", "ddpmpp")
    }
    assert [(entry.ours, entry.kind) for entry in last.values()] == [
        ("conv_out.kernel", "negated_conv"),
        ("conv_out.kernel", "conv"),
    ]


# --- ADM, EDM and others


ADM_NET = ("channels=4", "multipliers=(1,2)", "blocks=1", "attention=(4,)", "attention_heads=2", "groups=2")
ADM_FLAGS = (
    *("--config=iddpm_cifar", "--config.data.name=digits"),
    *(f"--config.net.unet.{field}" for field in (*ADM_NET, "resample=block")),
)


@pytest.fixture(scope="module")
def of_adm(tmp_path_factory):
    """A class-conditional network with a learned variance, in a state dict of ADM, imported; and what was said."""
    target = tmp_path_factory.mktemp("runs") / "adm"
    return target, done("import", DATA / "ema_0.9999_000012.pt", f"--workdir={target}", *ADM_FLAGS)


@pytest.mark.slow
def test_a_state_dict_of_adm_gives_its_outputs(of_adm):
    """The classes, the scale and shift, both kinds of resampling blocks, the order of the heads; half precision."""
    there, said = of_adm
    config = workdir.configuration(there)
    assert (config.labels, config.label_dropout, config.learned_variance) == (True, 0.0, True)
    assert "as adm" not in said and "adm, " in said and "run of step 12" in said
    assert "classes 0 to 2" in said and "guidance is not possible" in said
    params, _ = workdir.read(there, workdir.shapes_of(config, (8, 8, 1), 3))
    np.testing.assert_array_equal(params["label"]["embedding"][3], 0)
    held = arrays("adm.npz")
    net = UNet(**config.net.unet.to_dict(), num_classes=3, out_channels=2)
    cond = Cond(held["t"], jnp.asarray(held["label"], jnp.int32))
    got = jax.jit(net.apply)({"params": params}, shown(held["x"]), cond)
    assert held["y"].std() > 0.1
    np.testing.assert_allclose(got, shown(held["y"]), atol=1e-4 * held["y"].std())


def test_a_state_dict_of_adm_that_does_not_fit_is_refused_with_all_that_differs(tmp_path):
    """One line for what is missing, one for what is unknown and one for shapes, each with the first names."""
    file = DATA / "ema_0.9999_000012.pt"
    other = [flag for flag in ADM_FLAGS if "channels" not in flag and "attention=" not in flag]
    other += ["--config.net.unet.channels=8", "--config.net.unet.attention=(8,)"]
    code, _, err = main("import", file, f"--workdir={tmp_path / 'run'}", *other)
    lines = err.splitlines()
    assert code == 2 and len(lines) == 3 and all(line.startswith(f"scoregen: {file}: ") for line in lines), err
    assert re.search(r"there is no (\S+, ){2}\S+ \.\.\. \(\d+ of \d+ arrays are missing\)", lines[0])
    assert re.search(r"there is (\S+, ){2}\S+ \.\.\., which the network does not have \(\d+ such arrays\)", lines[1])
    assert "input_blocks.0.0.bias is 4, but the network's is 8; " in lines[2]
    assert re.search(r" \.\.\. \(\d+ arrays of another shape\)$", lines[2])
    other = [flag for flag in ADM_FLAGS if "heads" not in flag]
    answered(
        "import",
        file,
        f"--workdir={tmp_path / 'run'}",
        *other,
        "--config.learned_variance=false",
        "--config.sampler.step.ancestral.variance=small",
        "--config.loss.name=eps",
        parts=["out.2.bias is 2, but the network's is 1; out.2.weight is 2x4x3x3", "(2 arrays"],
    )
    answered(
        "import",
        file,
        f"--workdir={tmp_path / 'run'}",
        "--config=ddpmpp_vp_cifar",
        parts=["config.net.name=ncsnpp", "adm, which needs a unet"],
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_of_adm_draws_the_class_that_is_asked_for(tmp_path):
    """From the workdir alone, with data of as many classes. Guidance needs a trained "no class", and is refused."""
    labels = np.arange(60, dtype=np.int32) % 3
    np.savez(tmp_path / "mine.npz", x=(np.arange(60 * 64) % 251).astype(np.uint8).reshape(60, 8, 8, 1), y=labels)
    flags = (
        "--config.data.name=array",
        "--config.data.array.key=x",
        "--config.data.array.labels=y",
        f"--config.data.dir={tmp_path / 'mine.npz'}",
    )
    flags = (*ADM_FLAGS[:1], *flags, *ADM_FLAGS[2:])
    done("import", DATA / "ema_0.9999_000012.pt", f"--workdir={tmp_path / 'run'}", *flags)
    few = ("--config.sampler.n=2", "--config.sampler.images=2", "--config.sampler.batch=2")
    drawn = []
    for label in (0, 2):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            assert scoregen(["sample", str(tmp_path / "run"), *few, f"--config.sampler.label={label}"]) == 0, (
                err.getvalue()
            )
        drawn.append(np.load(tmp_path / "run" / "samples.npy"))
    assert (drawn[0] != drawn[1]).any()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert scoregen(["sample", str(tmp_path / "run"), *few, "--config.sampler.guidance=2"]) == 2
    assert "guidance needs a network trained also without labels" in err.getvalue()


def test_the_name_of_a_file_of_adm_gives_its_step(tmp_path):
    for name, step, notes in (("model000012.pt", 12, 1), ("ema_0.99_123456.pt", 123456, 0), ("mine.pt", 0, 0)):
        with source.opened(Path(shutil.copy(DATA / "ema_0.9999_000012.pt", tmp_path / name))) as found:
            assert (found.step, len(found.notes)) == (step, notes)


@pytest.mark.slow
def test_the_advice_for_a_pickle_of_edm_works(tmp_path):
    """The line of the refusal, as it is printed, makes a file that is imported and gives the outputs of the module."""
    torch = pytest.importorskip("torch")
    from reference.ncsnpp import EDM as Theirs

    sizes = {"size": 8, "channels": 32, "mult": (1, 2), "blocks": 1, "attention": (4,), "fourier": False}
    theirs = Theirs(**sizes, taps=(1, 1), residual=False, classes=3, augment=9)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape) / fan**0.5)
    (tmp_path / "OLD.pkl").write_bytes(pickle.dumps({"ema": theirs.eval(), "loss_fn": None, "augment_pipe": None}))
    line = answered("import", tmp_path / "OLD.pkl", f"--workdir={tmp_path / 'run'}", parts=["NVlabs/edm", "NEW.pt"])
    advice = re.search(r"python (-c '.*'), and import NEW.pt", line)
    assert advice is not None
    env = os.environ | {"PYTHONPATH": str(DATA.parent)}
    subprocess.run(f"{sys.executable} {advice[1]}", shell=True, cwd=tmp_path, env=env, check=True, timeout=200)

    fields = ("channels=32", "multipliers=(1,2)", "blocks=1", "attention=(4,)")
    flags = [f"--config.net.ncsnpp.{field}" for field in fields]
    flags = ["--config=edm_cifar", "--config.data.cifar10.size=8", *flags]
    said = done("import", tmp_path / "NEW.pt", f"--workdir={tmp_path / 'run'}", *flags)
    assert "edm, " in said and "classes 0 to 2" in said
    config = workdir.configuration(tmp_path / "run")
    params, _ = workdir.read(tmp_path / "run", workdir.shapes_of(config, (8, 8, 3), 3))
    net, process = NCSNpp(**config.net.ncsnpp.to_dict(), num_classes=3, augment_dim=9), EDM()
    rng, t = np.random.default_rng(0), jnp.array([0.05, 20.0])
    x, augment = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((2, 8, 8, 3), (2, 9)))

    def apply(x, t):
        cond = Cond(CONDITIONS["edm"](process, t), jnp.array([2, 0]), augment=augment)
        return net.apply({"params": params}, broadcast(input_scale(process, t), x) * x, cond)

    got = np.asarray(from_network(process, "edm", apply)(x, t).x0)
    with torch.no_grad():
        given = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2), torch.tensor(np.asarray(t))
        want = shown(theirs(*given, torch.eye(3)[[2, 0]], torch.tensor(np.asarray(augment))).numpy())
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


class Small(nn.Module):
    """A network of the user, in the names and the shapes of Flax."""

    @nn.compact
    def __call__(self, x, cond, train=False):
        x = nn.Conv(6, (7, 7), padding=3, name="init_conv")(x)
        return nn.Conv(1, (1, 1), name="final_conv")(nn.silu(x))


def test_the_advice_for_lucidrains_works(tmp_path):
    """A state dict that was saved as safetensors gives the outputs of its formula in a network of one's own."""
    hooks = b"}" + text("model") + b"}" + text("model.init_conv.weight") + tensor() + b"ss"
    answered(
        "import",
        archive(tmp_path / "model-1.pt", b"\x80\x02" + hooks + b"."),
        f"--workdir={tmp_path / 'run'}",
        parts=["denoising-diffusion-pytorch", "safetensors.torch.save_file(", "docs/weights.md"],
    )
    rng = np.random.default_rng(0)
    shapes = {"init_conv.weight": (6, 1, 7, 7), "init_conv.bias": (6,), "final_conv.weight": (1, 6, 1, 1)}
    state = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    state["final_conv.bias"] = np.ones(1, np.float32)
    save_file(state, tmp_path / "NEW.safetensors")
    layout = [
        *(Entry(f"{name}.weight", f"{name}.kernel", "conv") for name in ("init_conv", "final_conv")),
        *(Entry(f"{name}.bias", f"{name}.bias") for name in ("init_conv", "final_conv")),
    ]
    with source.opened(tmp_path / "NEW.safetensors") as found:
        params = to_ours(layout, {name: found.read(name, False) for name in found.arrays})
    x = rng.standard_normal((1, 9, 9, 1)).astype(np.float32)
    got = Small().apply({"params": params}, x, Cond(jnp.zeros(1)))
    # The middle pixel, by hand.
    patch = x[0, 1:8, 1:8, 0]
    hidden = (state["init_conv.weight"][:, 0] * patch).sum((1, 2)) + state["init_conv.bias"]
    want = (state["final_conv.weight"][0, :, 0, 0] * hidden / (1 + np.exp(-hidden))).sum() + 1
    np.testing.assert_allclose(got[0, 4, 4, 0], want, rtol=1e-4)


# --- a checkpoint of diffusers' training


def training_checkpoint(folder: Path) -> Path:
    """`unet/` and `unet_ema/`, whose weights are half of those in `unet/`, in the folder of a pipeline."""
    there = folder / "out" / "checkpoint-500"
    for name, factor in (("unet", 1), ("unet_ema", 0.5)):
        shutil.copytree(UNET2D / "unet", there / name)
        arrays = {key: (a * factor).astype(a.dtype) for key, a in load_file(UNET2D / FILE).items()}
        save_file(arrays, there / name / source.WEIGHTS)
    shutil.copytree(UNET2D / "scheduler", folder / "out" / "scheduler")
    config = json.loads((there / "unet" / "config.json").read_text())
    more = {"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 500, "power": 0.75}
    more |= {"update_after_step": 0, "use_ema_warmup": True}
    (there / "unet_ema" / "config.json").write_text(json.dumps(config | more))
    return there


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "step", "factors", "said"),
    [("", 500, (1, 0.5), ""), ("unet_ema", 500, (0.5, 0.5), ""), ("unet", 0, (1, 1), "unet_ema, was left out")],
)
def test_a_checkpoint_of_diffusers_training(tmp_path, part, step, factors, said):
    """The whole gives parameters and average, one of its folders only these; the scheduler is the pipeline's."""
    there = training_checkpoint(tmp_path)
    out = done("import", there / part, f"--workdir={tmp_path / 'run'}")
    assert said in out and ("left out" in out) == bool(said) and f"run of step {step} " in out
    config = workdir.configuration(tmp_path / "run")
    assert config.sampler.step.ancestral.variance == "large"  # as the scheduler says
    for averaged, factor in zip((False, True), factors, strict=True):
        params, _ = workdir.read(tmp_path / "run", workdir.shapes_of(config, (8, 8, 1)), averaged)
        want = load_file(UNET2D / FILE)["conv_in.weight"].astype(np.float32).transpose(2, 3, 1, 0)
        np.testing.assert_allclose(params["conv_in"]["kernel"], factor * want, rtol=1e-3)


def test_folders_of_two_trainings_are_refused(tmp_path):
    there = training_checkpoint(tmp_path)
    arrays = load_file(there / "unet_ema" / source.WEIGHTS)
    save_file(arrays | {"conv_in.bias": np.zeros(5, np.float16)}, there / "unet_ema" / source.WEIGHTS)
    answered("import", there, f"--workdir={tmp_path / 'run'}", parts=["unet and unet_ema differ in conv_in.bias"])


@pytest.mark.slow
def test_the_average_that_diffusers_itself_saves(tmp_path):
    """EMAModel after two updates: the import has its average, its step, and the parameters beside it."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    from diffusers.training_utils import EMAModel

    options = {key: value for key, value in SMALL.items() if key[0] != "_"}
    pipe = theirs_alive(options, tmp_path / "out")
    ema = EMAModel(pipe.unet.parameters(), decay=0.5, model_cls=diffusers.UNet2DModel, model_config=pipe.unet.config)
    with torch.no_grad():
        for _ in range(2):
            for parameter in pipe.unet.parameters():
                parameter.mul_(1.5)
            ema.step(pipe.unet.parameters())
    there = tmp_path / "out" / "checkpoint-2"
    ema.save_pretrained(there / "unet_ema")
    pipe.unet.save_pretrained(there / "unet")
    assert set(json.loads((there / "unet_ema" / "config.json").read_text())) >= source.EMA
    assert "run of step 2 " in done("import", there, f"--workdir={tmp_path / 'run'}")
    config = workdir.configuration(tmp_path / "run")
    found = [
        workdir.read(tmp_path / "run", workdir.shapes_of(config, (8, 8, 1)), averaged)[0] for averaged in (False, True)
    ]
    for params, folder in zip(found, ("unet", "unet_ema"), strict=True):
        want = load_file(there / folder / source.WEIGHTS)["conv_in.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(params["conv_in"]["kernel"], want)
    assert not np.array_equal(found[0]["conv_in"]["kernel"], found[1]["conv_in"]["kernel"])
