"""Speed of training and sampling, compared with PyTorch: the same network with the same weights, in one run.

    python benchmarks/speed/speed.py                       all parts: about two hours on two CPU cores
    python benchmarks/speed/speed.py --only=train,sample   some: floors, train, forward, sample, losses, compile, memory
    python benchmarks/speed/speed.py --dtype=bfloat16      on a GPU, with PyTorch in channels_last

Two programs are timed alternately, one round of each, so that both run under the same conditions. The result is the
median of the ratios over the rounds, with the quartiles. The script writes speed-DEVICE-DTYPE.json beside itself, and
from it speed-DEVICE-DTYPE.md and, for float32 on a CPU, docs/img/speed.png and the end of docs/benchmarks.md. Parts
that are not run keep their old results. It needs the extra `bench` (torch, diffusers).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Otherwise PyTorch's threads would spin between two operations, and take the cores from the other program.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from scoregen.app.command import need

need("bench", "diffusers", "torch")

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from scoregen.app.build import Parts, build
from scoregen.app.config import Config, load
from scoregen.cond import Cond
from scoregen.contrib.weights.layout import to_theirs
from scoregen.contrib.weights.unet import diffusers as layout
from scoregen.data import Dataset
from scoregen.nets import UNet
from scoregen.nets.cost import flops, operations
from scoregen.train import State, TrainStep, init_state, make_step
from scoregen.train.step import prepared

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from timing import Pair, pair, say, seconds, table, timed, times

PAGE, FIGURE = HERE.parents[1] / "docs" / "benchmarks.md", HERE.parents[1] / "docs" / "img" / "speed.png"
MARK = "<!-- What follows is written by benchmarks/speed/speed.py. -->\n"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# The networks: the U-Net of Ho et al. 2020, and smaller U-Nets for sampling.
CIFAR = {"channels": 128, "multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (16,), "groups": 32}
SMALL = {
    "8x8, 32 channels": (
        (8, 8, 1),
        {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "groups": 8},
    ),
    "16x16, 32 channels": (
        (16, 16, 3),
        {"channels": 32, "multipliers": (1, 2, 2), "blocks": 1, "attention": (8,), "groups": 32},
    ),
    "32x32, 64 channels": (
        (32, 32, 3),
        {"channels": 64, "multipliers": (1, 2, 2), "blocks": 2, "attention": (16,), "groups": 32},
    ),
}


def parts_of(shape: tuple[int, ...], net: dict[str, Any], **options: Any) -> Parts:
    """DDPM with this U-Net, on images of noise: the speed of a step does not depend on the content of images."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(1024, *shape), dtype=np.uint8)
    config: Config = load("ddpm_cifar")
    config.data.flip = False
    config.eval.at_end = False
    config.train.microbatch = 0
    config.net.unet.update(**net, dropout=0.1)
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in options.items()})
    return build(config, dataset=Dataset("noise", images, images))


def begin_training(parts: Parts) -> tuple[State, TrainStep]:
    """The first state and the training step of a run."""
    config, trained = parts.config, (parts.model, parts.objective, parts.optimizer)
    state = init_state(*trained, (config.train.batch, *parts.dataset.shape), config.seed)
    return state, make_step(*trained, parts.average, prepare=parts.prepare, seed=config.seed)


def first_params(parts: Parts) -> Any:
    """The parameters before training."""
    shape = (1, *parts.dataset.shape)
    return jax.jit(functools.partial(parts.model.init, shape=shape))(jax.random.key(0))


# --- the same network in PyTorch


def their_unet(shape: tuple[int, ...], net: dict[str, Any], params: Any) -> torch.nn.Module:
    """diffusers' `UNet2DModel` with our weights."""
    sizes = [shape[0] >> i for i in range(len(net["multipliers"]))]
    kinds = ["Attn" if size in net["attention"] else "" for size in sizes]
    unet = diffusers.UNet2DModel(
        sample_size=shape[0],
        in_channels=shape[2],
        out_channels=shape[2],
        block_out_channels=tuple(net["channels"] * m for m in net["multipliers"]),
        layers_per_block=net["blocks"],
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        norm_num_groups=min(net["groups"], net["channels"]),
        norm_eps=1e-6,
        attention_head_dim=None,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
        dropout=0.1,
    )
    weights = to_theirs(layout(UNet(**net), shape), params["net"]["params"])
    unet.load_state_dict({key: torch.from_numpy(np.array(array)) for key, array in weights.items()})
    return unet.to(DEVICE)


class Theirs:
    """A usual training step in PyTorch: eps-MSE, clipping, Adam and average, with fused operations where they exist."""

    def __init__(self, unet: torch.nn.Module, dtype: str, compile: bool):
        self.unet, self.half = unet.train(), dtype == "bfloat16"
        if DEVICE == "cuda":
            unet.to(memory_format=torch.channels_last)
        self.run = torch.compile(unet) if compile else unet
        self.parameters = list(unet.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.Adam(self.parameters, lr=2e-4, fused=True)
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64, device=DEVICE)
        self.abar = torch.cumprod(1 - betas, 0).float()

    def output(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=self.half):
            return self.run(x, t).sample

    def step(self, images: np.ndarray) -> None:
        x0 = torch.from_numpy(images).to(DEVICE).permute(0, 3, 1, 2).float() / 127.5 - 1
        if DEVICE == "cuda":
            x0 = x0.contiguous(memory_format=torch.channels_last)
        t, eps = torch.randint(1000, (len(x0),), device=DEVICE), torch.randn_like(x0)
        abar = self.abar[t][:, None, None, None]
        loss = torch.nn.functional.mse_loss(self.output(abar.sqrt() * x0 + (1 - abar).sqrt() * eps, t).float(), eps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        torch._foreach_lerp_(self.average, self.parameters, 1e-4)
        wait()


def wait() -> None:
    """Wait until the GPU has finished all work."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


class Ours:
    """The unchanged training step of a run."""

    def __init__(self, parts: Parts):
        self.state, self.run = begin_training(parts)

    def step(self, images: np.ndarray) -> None:
        self.state, metrics = self.run(self.state, images)
        jax.block_until_ready((self.state, metrics))


def drawn(shapes: Any) -> Any:
    """Parameters of unit order: the usual initial output is nearly zero, so a comparison would show nothing."""
    rng = np.random.default_rng(0)
    scale = lambda a: 1 / np.sqrt(np.prod(a.shape[:-1])) if len(a.shape) > 1 else 0.5  # noqa: E731
    return jax.tree.map(lambda a: jnp.asarray(scale(a) * rng.standard_normal(a.shape), a.dtype), shapes)


# --- the parts: each function returns the rows of its table


def floors(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The speed of a matrix product and of the memory of this machine, the best of 20 rounds."""
    dtype, side = jnp.dtype(options.dtype), 8192 if DEVICE == "cuda" else 2048
    a = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a: a @ a)
    wide = jnp.ones(2**26, jnp.float32)
    more = jax.jit(lambda a: a + 1)
    run = lambda f, x: min(timed(lambda: f(x).block_until_ready()) for _ in range(20))  # noqa: E731
    run(product, a), run(more, wide)
    return [
        {
            "matrix": 2 * side**3 / run(product, a),
            "memory": 2 * wide.nbytes / run(more, wide),
            "what": f"{side}x{side} {options.dtype}; {wide.nbytes >> 20} MiB read and written",
        }
    ]


def training(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A training step of the CIFAR-10 U-Net for each batch size, beside PyTorch eager and compiled."""
    rows = []
    for batch in options.batches:
        parts = parts_of((32, 32, 3), CIFAR, train__batch=batch, net__unet__dtype=options.dtype)
        ours = Ours(parts)
        images = parts.dataset.batch(0, 0, batch)
        count = operations(jax.value_and_grad(functools.partial(loss, parts, images=images)), ours.state.params)
        cost = ours.run.lower(ours.state, images).compile().cost_analysis()
        for compile in (False, True):
            if compile and batch not in options.compiled:
                continue
            theirs = Theirs(their_unet((32, 32, 3), CIFAR, ours.state.params), options.dtype, compile)
            one, other = functools.partial(ours.step, images), functools.partial(theirs.step, images)
            first = timed(other)
            found = pair(one, other, options.rounds)
            rows.append(
                {"batch": batch, "beside": "torch.compile" if compile else "eager", "first": first}
                | {"operations": count, "bytes": cost.get("bytes accessed", 0.0)}
                | found._asdict()
            )
            say(f"train {rows[-1]}")
    return rows


def loss(parts: Parts, params: Any, images: Any) -> Any:
    """The loss of a run, as a function of its parameters."""
    keys, others = jax.random.split(jax.random.key(0), (2, len(images)))
    x0, cond = prepared(parts.prepare, jnp.asarray(images), keys, None)
    return parts.objective(parts.model, params, others, x0, cond, train_key=jax.random.key(1)).mean()


def forward(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The network alone, without gradient."""
    rows = []
    for batch in options.batches:
        net = UNet(**CIFAR, dtype=options.dtype)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((batch, 32, 32, 3)).astype(np.float32)
        t = np.arange(batch) * 10.0
        cond = Cond(jnp.asarray(t, jnp.float32))
        params = drawn(jax.eval_shape(net.init, jax.random.key(0), x, cond))
        run = jax.jit(net.apply)
        unet = their_unet((32, 32, 3), CIFAR, {"net": params}).eval()
        theirs = Theirs(unet, options.dtype, False)
        unet.eval()
        x_, t_ = torch.from_numpy(x.transpose(0, 3, 1, 2)).to(DEVICE), torch.from_numpy(t).to(DEVICE)
        ours_x = jax.device_put(x)

        def evaluate(theirs=theirs, x_=x_, t_=t_):
            with torch.inference_mode():
                found = theirs.output(x_, t_)
            wait()
            return found

        ours = lambda run=run, p=params, x=ours_x, cond=cond: run(p, x, cond).block_until_ready()  # noqa: E731
        apart = np.abs(np.asarray(ours()).transpose(0, 3, 1, 2) - evaluate().float().cpu().numpy()).max()
        found = pair(ours, evaluate, 2 * options.rounds)
        rows.append(
            {"batch": batch, "apart": float(apart), "operations": batch * flops(net, (32, 32, 3))} | found._asdict()
        )
        say(f"forward {rows[-1]}")
    return rows


def sampling(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Whole sampling loops, from noise to images on the host, beside diffusers' pipelines."""
    rows = []
    cases = [(name, *case, 16 if case[0][0] < 32 else 4) for name, case in SMALL.items()]
    cases.append(("CIFAR-10's", (32, 32, 3), CIFAR, 2))
    for name, shape, net, batch in cases:
        for steps in (50, 1000):
            parts = parts_of(
                shape,
                net,
                **{"sampler.n": steps, "sampler.batch": batch, "net.unet.dtype": options.dtype},
                **({"sampler.step.ancestral.eta": 0.0} if steps < 1000 else {}),
            )
            params, draw = first_params(parts), parts.sampling
            unet = their_unet(shape, net, params).eval()
            if options.dtype == "bfloat16":
                unet = unet.to(torch.bfloat16)
            kinds = (diffusers.DDIMPipeline, diffusers.DDIMScheduler), (diffusers.DDPMPipeline, diffusers.DDPMScheduler)
            make, scheduler = kinds[steps == 1000]
            pipeline = make(unet=unet, scheduler=scheduler(clip_sample=True))
            pipeline.set_progress_bar_config(disable=True)
            theirs = lambda pipeline=pipeline, batch=batch, steps=steps: pipeline(  # noqa: E731
                batch_size=batch, num_inference_steps=steps, output_type="np"
            )
            ours = lambda draw=draw, params=params, batch=batch: draw(params, batch)  # noqa: E731
            if shape[0] == 32 and steps == 1000 and DEVICE == "cpu":
                # A round takes minutes: time it once, and compile before.
                draw(params, 1)
                once = timed(ours), timed(theirs)
                found = Pair(*once, *[once[1] / once[0]] * 3, 1)
            else:
                found = pair(ours, theirs, 2 if steps == 1000 else options.rounds)
            rows.append({"net": name, "steps": steps, "batch": batch} | found._asdict())
            say(f"sample {rows[-1]}")
    return rows


def losses(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A training step with each loss beside a step with eps, for the same network."""
    rows = []
    digits, cifar = SMALL["8x8, 32 channels"], ((32, 32, 3), CIFAR)
    cases = [("CIFAR-10's", cifar, 4, name) for name in ("dsm", "ssm", "fdssm")]
    cases += [("8x8, 32 channels", digits, 32, name) for name in ("dsm", "ssm", "fdssm", "ism")]
    for net, (shape, fields), batch, name in cases:
        kinds = [parts_of(shape, fields, train__batch=batch, loss__name=loss) for loss in ("eps", name)]
        images = kinds[0].dataset.batch(0, 0, batch)
        steps = (functools.partial(Ours(kind).step, images) for kind in kinds)
        found = pair(*steps, options.rounds)
        rows.append({"net": net, "batch": batch, "loss": name} | found._asdict())
        say(f"loss {rows[-1]}")
    return rows


def compiling(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds from a new process to the end of its first training step, without and with the compilation cache."""
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
        env |= {"JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
        cold, warm = (child("compile", 4, options.dtype, env) for _ in range(2))
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    say(f"compile {cold} {warm} {size}")
    return [{"cold": cold["seconds"], "warm": warm["seconds"], "size": size}]


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The peak memory of a process in three training steps, minus its memory before the first step."""
    rows = []
    for batch in options.batches:
        ours, theirs = (child(f"memory-{whose}", batch, options.dtype) for whose in ("ours", "theirs"))
        rows.append({"batch": batch, "ours": ours["bytes"], "theirs": theirs["bytes"]})
        say(f"memory {rows[-1]}")
    return rows


def child(part: str, batch: int, dtype: str, env: dict[str, str] | None = None) -> dict[str, float]:
    """Run a part in its own process, whose last line is the result."""
    command = [sys.executable, __file__, f"--child={part}", f"--batches={batch}", f"--dtype={dtype}"]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def as_child(part: str, batch: int, dtype: str) -> dict[str, float]:
    """The part that `child` runs in its process."""
    begin = time.perf_counter()
    parts = parts_of((32, 32, 3), CIFAR, train__batch=batch, net__unet__dtype=dtype)
    images = parts.dataset.batch(0, 0, batch)
    before = held()
    if part == "memory-theirs":
        params = first_params(parts)
        theirs = Theirs(their_unet((32, 32, 3), CIFAR, params), dtype, False)
        del params
        jax.clear_caches()
        work = theirs.step
    else:
        work = Ours(parts).step
    for _ in range(1 if part == "compile" else 3):
        work(images)
    return {"seconds": time.perf_counter() - begin, "bytes": most(part) - before}


def held() -> int:
    """The bytes that the process holds now; 0 on a GPU, where `most` counts only the bytes of this process."""
    if DEVICE == "cuda":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def most(part: str) -> int:
    """The peak bytes of the process so far."""
    if DEVICE == "cuda":
        if part == "memory-theirs":
            return torch.cuda.max_memory_allocated()
        return (jax.local_devices()[0].memory_stats() or {})["peak_bytes_in_use"]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


PARTS: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "floors": floors,
    "train": training,
    "forward": forward,
    "sample": sampling,
    "losses": losses,
    "compile": compiling,
    "memory": memory,
}


# --- the page


def floor(row: dict[str, Any], rates: dict[str, Any]) -> str:
    """The time of the arithmetic alone, and its share in the measured time."""
    least = row["operations"] / rates["matrix"]
    return f"{seconds(least)}, {100 * least / row['ours']:.0f} %"


def page(found: dict[str, Any]) -> str:
    """All tables in Markdown."""
    rates = found["floors"]["rows"][0]
    text = [
        f"The machine multiplies matrices at {rates['matrix'] / 1e9:.0f} GFLOP/s and moves memory at "
        f"{rates['memory'] / 1e9:.1f} GB/s ({rates['what']}), measured in the same run. "
        "Ratios are their time over our time: more than 1 means that ours is faster. "
        "In brackets are the quartiles over the rounds.\n"
    ]
    if "train" in found:
        text += ["### A training step of the CIFAR-10 U-Net\n"]
        head = ("batch", "beside", "here", "theirs", "ratio", "arithmetic alone, and its share", "bytes moved")
        rows = [
            (r["batch"], r["beside"], seconds(r["ours"]), seconds(r["theirs"]), times(r), floor(r, rates), size(r))
            for r in found["train"]["rows"]
        ]
        text += [table(head, rows)]
    if "forward" in found:
        text += ["### Its forward pass\n"]
        head = ("batch", "here", "PyTorch eager", "ratio", "arithmetic alone", "largest difference of the outputs")
        rows = [
            (r["batch"], seconds(r["ours"]), seconds(r["theirs"]), times(r), floor(r, rates), f"{r['apart']:.0e}")
            for r in found["forward"]["rows"]
        ]
        text += [table(head, rows)]
    if "sample" in found:
        text += ["### Whole sampling loops, beside diffusers' pipelines\n"]
        head = ("network", "batch", "levels", "here", "diffusers", "ratio", "rounds")
        rows = [
            (r["net"], r["batch"], r["steps"], seconds(r["ours"]), seconds(r["theirs"]), times(r), r["rounds"])
            for r in found["sample"]["rows"]
        ]
        text += [table(head, rows)]
    if "losses" in found:
        text += ["### A training step with each loss, beside a step with `eps`\n"]
        head = ("network", "batch", "loss", "`eps`", "this loss", "this loss / `eps`")
        rows = [
            (r["net"], r["batch"], f"`{r['loss']}`", seconds(r["ours"]), seconds(r["theirs"]), times(r))
            for r in found["losses"]["rows"]
        ]
        text += [table(head, rows)]
    if "compile" in found:
        (r,) = found["compile"]["rows"]
        text += [
            "### Compiling\n",
            f"From the start of a process to the end of its first training step at batch 4: {seconds(r['cold'])}. "
            f"With the compilation cache, which a run uses by default: {seconds(r['warm'])}. "
            f"The cache takes {r['size'] / 1e6:.1f} MB.\n",
        ]
    if "memory" in found:
        text += ["### Peak memory in three training steps, minus the memory before the first step\n"]
        rows = [(r["batch"], *(f"{r[w] / 1e9:.2f} GB" for w in ("ours", "theirs"))) for r in found["memory"]["rows"]]
        text += [table(("batch", "here", "PyTorch eager"), rows)]
    text += [found["versions"] + "\n"]
    return "\n".join(text)


def size(row: dict[str, Any]) -> str:
    """The bytes that XLA counts as read and written."""
    return f"{row['bytes'] / 1e9:.1f} GB"


def draw_figure(found: dict[str, Any]) -> None:
    """Draw the ratios as bars that start at 1, with their quartiles."""
    from scoregen.app.figures import figure, save

    bars = [(f"train step, batch {r['batch']}, {r['beside']}", r) for r in found.get("train", {}).get("rows", [])]
    bars += [(f"forward, batch {r['batch']}", r) for r in found.get("forward", {}).get("rows", [])]
    bars += [(f"sample, {r['net']}, {r['steps']} levels", r) for r in found.get("sample", {}).get("rows", [])]
    labels, rows = zip(*bars[::-1], strict=True)
    ratios = np.array([r["ratio"] for r in rows])
    spread = np.array([(r["ratio"] - r["low"], r["high"] - r["ratio"]) for r in rows]).T
    page, ((panel,),) = figure(size=(8, 0.34 * len(bars) + 1.2))
    colors = ["#22313f" if ratio >= 1 else "#c8553d" for ratio in ratios]
    panel.barh(labels, ratios - 1, left=1, color=colors, xerr=spread, error_kw={"ecolor": "#888888", "lw": 1})
    for i, ratio in enumerate(ratios):
        panel.annotate(
            f"{ratio:.2f}", (max(ratio, 1) + spread[1, i], i), (4, 0), textcoords="offset points", va="center"
        )
    panel.axvline(1, color="black", lw=0.8)
    panel.set_xscale("log")
    panel.set_xlim(0.9 * min(ratios.min(), 1), 1.5 * ratios.max())
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50) if 0.9 * min(ratios.min(), 1) <= tick <= 1.5 * ratios.max()]
    panel.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel("PyTorch's time over scoregen's: to the right of 1, scoregen is faster")
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    save(FIGURE, page)


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: tuple(int(part) for part in text.split(",") if part)  # noqa: E731
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--batches", type=numbers, default=(4, 16) if DEVICE == "cpu" else (128, 512))
    parser.add_argument("--compiled", type=numbers, default=(4,) if DEVICE == "cpu" else (128, 512))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--page", action="store_true", help="do not measure; only write the page again")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.child:
        print(json.dumps(as_child(options.child, options.batches[0], options.dtype)))
        return
    file = HERE / f"speed-{DEVICE}-{options.dtype}.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for part in [] if options.page else options.only.split(","):
        found[part] = {"rows": PARTS[part](options)}
        kind = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{os.cpu_count()} CPU cores"
        found["versions"] = (
            f"{kind}, {options.dtype}: JAX {jax.__version__}, PyTorch {torch.__version__}, diffusers "
            f"{diffusers.__version__}."
        )
        file.write_text(json.dumps(found, indent=1) + "\n")
    text = page(found)
    file.with_suffix(".md").write_text(text)
    if DEVICE == "cpu" and options.dtype == "float32":
        draw_figure(found)
        PAGE.write_text(PAGE.read_text().split(MARK)[0] + MARK + "\n" + text)
    print(text)


if __name__ == "__main__":
    main()
