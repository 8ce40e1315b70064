"""Every CIFAR-10 preset: the cost of its network, three real training steps, and a grid of samples.

    python benchmarks/presets/presets.py --data=DIR                    all presets: about 45 minutes on two cores
    python benchmarks/presets/presets.py --data=DIR --only=edm_cifar   some presets

The batch is 4 and the samplers use few levels, so that two cores and 24 GB of memory are enough. The script compiles
and times each preset, and then runs `scoregen train` with the same options to the end. It writes presets.json beside
itself, and from presets.json it writes presets.md and the table in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "benchmarks.md"
BEGIN = "<!-- This table is written by benchmarks/presets/presets.py. -->\n"
END = "<!-- End of the table. -->\n"
BATCH = 4
OPTIONS = (
    *(f"--config.train.batch={BATCH}", "--config.train.microbatch=0", "--config.train.steps=3"),
    *("--config.train.log_every=1", "--config.train.sample_every=0", "--config.eval.at_end=false"),
    *("--config.sampler.n=5", f"--config.sampler.batch={BATCH}", f"--config.sampler.images={BATCH}"),
)


def presets() -> list[str]:
    """The presets that are trained on CIFAR-10."""
    from scoregen.app.config import load, presets

    return [name for name in presets() if name != "default" and load(name).data.name == "cifar10"]


def arguments(name: str, data: str) -> list[str]:
    """The flags for a short run of a preset."""
    from scoregen.app.config import load

    corrector = load(name).sampler.corrector.name
    few = [f"--config.sampler.corrector.{corrector}.steps=1"] if corrector in ("langevin", "snr") else []
    return [f"--config={name}", f"--config.data.dir={data}", *OPTIONS, *few]


def measured(name: str, data: str) -> dict[str, Any]:
    """The numbers of parameters and operations, the seconds to compile and of a step, and the loss; in this process."""
    import jax

    from scoregen.app.arguments import parse
    from scoregen.app.build import build
    from scoregen.nets.cost import operations
    from scoregen.process import top
    from scoregen.train import init_state, make_step

    config = parse(arguments(name, data)).config
    parts = build(config)
    model, dataset, trained = parts.model, parts.dataset, (parts.model, parts.objective, parts.optimizer)
    state = init_state(*trained, (BATCH, *dataset.shape), config.seed)
    x = jax.numpy.zeros((1, *dataset.shape))
    one = operations(lambda params: model.denoiser(params)(x, top(model.process)).x0, state.params)
    step = make_step(*trained, parts.average, config.train.microbatch, prepare=parts.prepare, seed=config.seed)
    batches = [dataset.batch(config.seed, i, BATCH) for i in range(3)]
    begin = time.perf_counter()
    step.lower(state, batches[0]).compile()
    compiled = time.perf_counter() - begin
    took = []
    for batch in batches:
        begin = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        took.append(time.perf_counter() - begin)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params["net"])),
        "operations": one,
        "compile": compiled,
        "step": min(took[1:]),
        "loss": float(metrics["loss"]),
    }


def run(name: str, data: str, env: dict[str, str]) -> None:
    """Run the preset on the command line, until it has drawn a grid of samples.

    Raises:
        CalledProcessError: if the command fails.
        FileNotFoundError: if there is no grid.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "scoregen", "train", *arguments(name, data), f"--workdir={folder}"]
        subprocess.run(command, check=True, env=env)
        if not Path(folder, "samples.png").is_file():
            raise FileNotFoundError(f"{name} has written no samples.png")


def written(found: dict[str, Any]) -> str:
    """The table in Markdown."""
    import jax

    head = ("preset", "parameters", "GFLOPs an image", "compile", f"step of {BATCH} images", "loss at step 3")
    lines = [head, ("---",) * len(head)]
    for name, row in sorted(found.items()):
        figures = f"{row['operations'] / 1e9:.2f}", f"{row['compile']:.0f} s", f"{row['step']:.2f} s"
        lines.append((f"`{name}`", f"{row['parameters']:,}", *figures, f"{row['loss']:.4g}"))
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{os.cpu_count()} CPU cores, float32, JAX {jax.__version__}.\n"


def main() -> None:
    """Measure and run the presets, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of CIFAR-10's binary version")
    parser.add_argument("--only", default="", help="presets, separated by commas")
    parser.add_argument("--measure", action="store_true", help="only measure; do not run the command that draws a grid")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured(options.child, options.data)))
        return
    file = HERE / "presets.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    with tempfile.TemporaryDirectory() as kept:
        # The command reuses the programs that the measurement has compiled.
        env = os.environ | {"JAX_COMPILATION_CACHE_DIR": kept}
        for name in options.only.split(",") if options.only else presets():
            command = [sys.executable, __file__, f"--data={options.data}", f"--child={name}"]
            done = subprocess.run(command, check=True, env=env, stdout=subprocess.PIPE, text=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
            print(name, found[name], flush=True)
            if not options.measure:
                run(name, options.data, env)
            file.write_text(json.dumps(found, indent=1) + "\n")
    text = written(found)
    (HERE / "presets.md").write_text(text)
    before, after = PAGE.read_text().split(BEGIN)[0], PAGE.read_text().split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    print(text)


if __name__ == "__main__":
    main()
