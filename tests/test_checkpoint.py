"""A checkpoint is restored bit for bit, or else the previous checkpoint is, or else one line says why not."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from refusal import refused

from scoregen.train.checkpoint import Checkpoints


@struct.dataclass
class State:
    step: jax.Array
    params: dict
    params_ema: dict
    opt: optax.OptState


@pytest.fixture(scope="module")
def state():
    keys = iter(jax.random.split(jax.random.key(0), 3))
    params = {
        "Dense_0": {
            "kernel": jax.random.normal(next(keys), (40, 60)),
            "bias": jnp.array([0.0, -0.0, jnp.nan, jnp.inf]),
        },
        "half": [jax.random.normal(next(keys), (7,), jnp.bfloat16), jnp.float16(1 / 3)],
        "bytes": jnp.arange(5, dtype=jnp.uint8),
        "mask": jnp.array([True, False]),
        "none": None,
    }
    floats = {"Dense_0": params["Dense_0"]}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    return State(jnp.int32(7), params, jax.tree.map(jnp.copy, floats), optimizer.init(floats))


def same(a, b) -> bool:
    """Equal in structure, type and every bit."""

    def equal(x, y):
        p, q = np.asarray(x), np.asarray(y)
        return type(x) is type(y) and (p.dtype, p.shape) == (q.dtype, q.shape) and p.tobytes() == q.tobytes()

    return jax.tree.structure(a) == jax.tree.structure(b) and all(map(equal, *map(jax.tree.leaves, (a, b))))


def run(script: str, *args: object, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
        env=os.environ | env,
    )


def test_round_trip_is_exact(tmp_path, state):
    with Checkpoints(tmp_path / "deep" / "checkpoints") as checkpoints:
        assert checkpoints.restore(state) is None
        assert not checkpoints.directory.exists()
        checkpoints.save(7, state)
        restored, step = checkpoints.restore(jax.tree.map(jnp.zeros_like, state))
    assert step == 7
    assert same(restored, state)
    abstract = jax.eval_shape(lambda: state)
    assert same(Checkpoints(checkpoints.directory).restore(abstract)[0], state)
    for path in checkpoints.directory.rglob("*"):
        assert path.is_dir() or not path.read_bytes().startswith(b"\x80")  # no pickle


def test_host_values_keep_their_types(tmp_path):
    state = {"a": np.arange(4), "b": np.float64(0.1), "c": 3, "d": 0.1, "e": True, "f": np.array(2, np.int16)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        assert same(checkpoints.restore(state)[0], state)
        for leaf in (jax.random.key(0), "text", object()):
            with pytest.raises(TypeError, match="cannot save key"):
                checkpoints.save(1, {"key": leaf})
        with pytest.raises(TypeError, match="same dotted path"):
            checkpoints.save(1, {"a": {"b": 1}, "a.b": 2})


def test_the_state_may_be_donated_or_changed_at_once(tmp_path):
    host = np.arange(500_000.0)
    device = jnp.arange(500_000, dtype=jnp.float32)
    step = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"host": host, "device": device})
        host[:] = -1
        step(device).block_until_ready()
        template = {"host": host, "device": jnp.zeros(500_000)}
        restored, _ = checkpoints.restore(template)
    assert (restored["host"] == np.arange(500_000)).all()
    assert (np.asarray(restored["device"]) == np.arange(500_000)).all()


def test_keeps_the_newest_and_the_best(tmp_path):
    metrics = {1: 5.0, 2: 1.0, 3: None, 4: float("nan"), 5: 1.5, 6: float("-inf")}
    with Checkpoints(tmp_path / "a", keep=2) as checkpoints:
        assert (checkpoints.steps(), checkpoints.latest_step(), checkpoints.best_step()) == ([], None, None)
        for step, metric in metrics.items():
            checkpoints.save(step, {"x": np.array(step)}, metric)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6]
        assert (checkpoints.latest_step(), checkpoints.best_step()) == (6, 2)
        assert checkpoints.restore({"x": np.array(0)}, best=True) == ({"x": np.array(2)}, 2)
        assert checkpoints.restore({"x": np.array(0)}, step=5) == ({"x": np.array(5)}, 5)
        refused(lambda: checkpoints.restore({"x": np.array(0)}, step=4), "step 4", "6, 5, 2")
        checkpoints.save(7, {"x": np.array(7)}, 1.0)  # as good as step 2 and newer
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.best_step()) == ([6, 7], 7)
    with Checkpoints(tmp_path / "b", keep=1, best=False) as checkpoints:
        for step, metric in metrics.items():
            checkpoints.save(step, {"x": np.array(step)}, metric)
    assert checkpoints.steps() == [6]
    assert [path.name for path in checkpoints.directory.iterdir()] == ["6"]
    with pytest.raises(ValueError, match="at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_saving_a_step_again(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": np.array(1)})
        checkpoints.save(1, {"x": np.array(2)})
        assert checkpoints.restore({"x": np.array(0)})[0]["x"] == 1
    with Checkpoints(tmp_path) as checkpoints:  # a run resumed from an earlier step gets here again
        checkpoints.save(1, {"x": np.array(3)})
        assert checkpoints.restore({"x": np.array(0)})[0]["x"] == 3


def test_restores_a_part_alone(tmp_path, state):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, metric=0.5)
        ema = jax.tree.map(jnp.zeros_like, state.params_ema)
        assert same(checkpoints.restore_part("params_ema", ema)[0], state.params_ema)
        assert same(checkpoints.restore_part("params", state.params)[0], state.params)
        kernel, step = checkpoints.restore_part("params.Dense_0.kernel", jnp.zeros((40, 60)), best=True)
        assert same(kernel, state.params["Dense_0"]["kernel"])
        assert step == 3
        refused(lambda: checkpoints.restore_part("ema", ema), "'ema'", "params_ema")
        refused(lambda: checkpoints.restore_part("params", ema), "does not fit this model", "params.bytes")


def test_another_structure_is_refused(tmp_path, state):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state)
        checkpoints.wait()
    wider = state.replace(params_ema={"Dense_0": {"kernel": jnp.zeros((40, 61)), "bias": jnp.zeros(4)}})
    half = state.replace(step=jnp.int16(0))
    for other, *parts in [
        (wider, "params_ema.Dense_0.kernel", "40x60", "40x61"),
        (half, "step", "int32", "int16"),
        (state.replace(opt=()), "opt.", "which the model does not have"),
        (state.replace(params_ema=dict(state.params_ema, extra=jnp.zeros(2))), "no params_ema.extra"),
    ]:
        refused(lambda other=other: Checkpoints(tmp_path).restore(other), "does not fit this model", *parts)


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flipped":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :])


@pytest.mark.quick(1)
@pytest.mark.parametrize("how", ["gone", "cut", "flipped"])
def test_any_damaged_file_falls_back(tmp_path, state, how, capfd):
    said = []
    with Checkpoints(tmp_path, say=said.append) as checkpoints:
        checkpoints.save(1, state, metric=2.0)
        checkpoints.save(2, state.replace(step=jnp.int32(8)), metric=1.0)
    files = sorted(path for path in (tmp_path / "2").rglob("*") if path.is_file())
    assert len(files) > 5
    passed_over = 0
    for file in files:
        intact = file.read_bytes()
        spoil(file, how)
        said.clear()
        for best in (False, True):
            restored, step = Checkpoints(tmp_path, say=said.append).restore(state, best=best)
            assert restored.step == {1: 7, 2: 8}[step]
            assert same(restored.replace(step=state.step), state)
            assert len(said) <= 1 + best
        passed_over += step == 1
        if step == 1:
            assert str(tmp_path / "2") in said[0]
            assert "damaged" in said[0]
            refused(lambda: Checkpoints(tmp_path, say=said.append).restore(state, step=2), "no readable", "2")
        file.write_bytes(intact)
    assert passed_over >= len(files) - 2  # two files hold only orbax's own notes
    assert capfd.readouterr() == ("", "")
    for file in tmp_path.glob("*/contents"):
        spoil(file, how)
    refused(lambda: Checkpoints(tmp_path, say=said.append).restore(state), str(tmp_path), "2, 1", "start the run again")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "checkpoints")
    refused(lambda: checkpoints.save(1, {"x": np.zeros(3)}), "could not write", "Not a directory", "no earlier one")
    assert checkpoints.steps() == []


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_costs_no_checkpoint(tmp_path):
    # A limit on the size of a file fails in the writing threads, as a full disk does.
    child = run(
        """
        import resource, sys
        import numpy as np
        from scoregen.train.checkpoint import Checkpoints
        from scoregen.errors import UsageError

        checkpoints = Checkpoints(sys.argv[1])
        small, large = ({"x": np.random.default_rng(0).standard_normal(n)} for n in (1000, 1_000_000))
        checkpoints.save(1, small)
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        for finish in (checkpoints.wait, lambda: checkpoints.save(4, small)):
            checkpoints.save(2, large)
            try:
                finish()
            except UsageError as error:
                print(error)
        assert [path.name for path in checkpoints.directory.iterdir()] == ["1"]
        checkpoints.save(3, small)
        checkpoints.close()
        print(checkpoints.steps())
        """,
        tmp_path,
    )
    out, err = child.communicate(timeout=60)
    line = f"could not write {tmp_path / '2'}: File too large; the last good checkpoint is step 1"
    assert (out.splitlines(), err) == ([line, line, "[1, 3]"], "")


@pytest.mark.slow
def test_a_kill_in_mid_save_leaves_the_last_good_step(tmp_path):
    child = run(
        """
        import sys, time
        import numpy as np
        from scoregen.train.checkpoint import Checkpoints

        checkpoints = Checkpoints(sys.argv[1])
        checkpoints.save(1, {"x": np.full(1000, 1.0)})
        checkpoints.wait()
        seal = checkpoints._seal
        def stop():  # all is written, nothing is renamed
            seal()
            print("written", flush=True)
            time.sleep(60)
        checkpoints._seal = stop
        checkpoints._orbax = checkpoints._open()
        checkpoints.save(2, {"x": np.full(1000, 2.0)})
        checkpoints.wait()
        """,
        tmp_path,
    )
    assert child.stdout.readline() == "written\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert len(list(tmp_path.iterdir())) == 2  # step 1, and what was to be step 2
    template = {"x": np.zeros(1000)}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        restored, step = checkpoints.restore(template)
        assert (step, restored["x"][0]) == (1, 1.0)
        assert len(list(tmp_path.iterdir())) == 2  # a reader touches nothing
        checkpoints.save(3, {"x": np.full(1000, 3.0)})
        assert checkpoints.restore(template)[0]["x"][0] == 3.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


@pytest.mark.slow
def test_from_eight_devices_to_one_and_back(tmp_path):
    script = """
        import sys
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        from scoregen.train.checkpoint import Checkpoints

        devices = jax.devices()
        mesh = Mesh(np.array(devices), ("data",))
        split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
        value = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)
        state = {"x": jax.device_put(value, split), "y": jax.device_put(value, whole)}
        checkpoints = Checkpoints(sys.argv[1])
        templates = [jax.tree.map(jnp.zeros_like, state), jax.eval_shape(lambda: state)]
        for template in templates if checkpoints.steps() else []:
            restored, _ = checkpoints.restore(template)
            for key in state:
                assert (np.asarray(restored[key]) == value).all()
                if template is templates[0]:
                    assert restored[key].sharding == template[key].sharding, (key, restored[key].sharding)
        checkpoints.save(len(devices), state)
        checkpoints.close()
        print(len(devices), checkpoints.steps())
        """
    for count, steps in ((8, "[8]"), (1, "[1, 8]"), (8, "[1, 8]")):
        child = run(script, tmp_path, XLA_FLAGS=f"--xla_force_host_platform_device_count={count}")
        assert child.communicate(timeout=60) == (f"{count} {steps}\n", "")
