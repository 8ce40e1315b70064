"""Make tests/data: a tiny diffusers network with its outputs, and a PyTorch file, for tests that need neither library.

    python benchmarks/parity/weights.py

The script needs the extra `interop` (torch, diffusers). All weights are redrawn at unit order, because layers that are
initialised to zero would hide all layers before them.
"""

import sys
from pathlib import Path

import numpy as np

from scoregen.app.command import need

need("interop", "diffusers", "torch")

import diffusers
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

DATA = Path(__file__).parents[2] / "tests" / "data"
TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 2,
    # With these options it is the network of Ho et al. 2020, as in google/ddpm-cifar10-32.
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}


def alive(model: UNet2DModel, seed: int = 0) -> UNet2DModel:
    """The module with random parameters, all of unit order."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1.0)
    model.eval()
    return model


def unet2d() -> None:
    """A pipeline in half precision, and the output of its network in float32."""
    model = alive(UNet2DModel(**TINY)).half()
    DDPMPipeline(model, DDPMScheduler(variance_type="fixed_large")).save_pretrained(DATA / "unet2d")
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(3, 1, 8, 8, generator=generator), torch.tensor([0, 250, 999])
    with torch.no_grad():
        y = model.float()(x, t).sample
    np.savez(DATA / "unet2d.npz", x=x.numpy(), t=t.numpy(), y=y.numpy())


def pth() -> None:
    """A checkpoint with every kind of tensor that PyTorch can write, and the same values as plain arrays."""
    torch.manual_seed(0)
    whole = torch.randn(4, 6)
    tensors = {
        "a": torch.randn(3, 2),
        "turned": whole.T[1:4],  # strides and an offset
        "scalar": torch.tensor(2.5),
        "f16": torch.randn(5).half(),
        "bf16": torch.randn(5).bfloat16(),
        "f64": torch.randn(2).double(),
        "empty": torch.randn(0, 3),
    }
    model = torch.nn.Module()
    model.register_buffer("sigmas", torch.linspace(50, 0.01, 5))
    model.all_modules = torch.nn.ParameterDict(tensors)
    parallel = torch.nn.DataParallel(model)
    optimizer = torch.optim.Adam(parallel.parameters(), lr=1e-3)
    torch.stack([p.double().sum() for p in parallel.parameters()]).sum().backward()
    optimizer.step()
    shadow = [p.clone().detach() + 1 for p in parallel.parameters()]
    state = {
        "optimizer": optimizer.state_dict(),
        "model": parallel.state_dict(),
        "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": shadow},
        "step": 7,
    }
    torch.save(state, DATA / "tiny.pth")
    named = [name for name, _ in model.named_parameters()]
    held = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    held |= {f"ema.{name}": a.double().numpy() for name, a in zip(named, shadow, strict=True)}
    np.savez(DATA / "tiny.npz", allow_pickle=False, **held)


# Schedulers whose steps are compared, by name: the class, and its options.
SCHEDULERS = {
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "large": ("DDPMScheduler", {"variance_type": "fixed_large"}),
    "sigmoid": ("DDPMScheduler", {"beta_schedule": "sigmoid", "prediction_type": "sample", "clip_sample_range": 2.0}),
    "dynamic": ("DDPMScheduler", {"thresholding": True, "dynamic_thresholding_ratio": 0.75, "sample_max_value": 1.5}),
    "capped": ("DDPMScheduler", {"thresholding": True}),  # a largest value of 1: the same as a clip
    "zero": ("DDPMScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    "zero_cosine": (
        "DDPMScheduler",
        {"rescale_betas_zero_snr": True, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
    ),
    "zero_scaled": (
        "DDIMScheduler",
        {"rescale_betas_zero_snr": True, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"},
    ),
    "ddim": ("DDIMScheduler", {"clip_sample_range": 0.5}),
    "ddim_dynamic": ("DDIMScheduler", {"thresholding": True, "sample_max_value": 100.0}),
}
STEPS = {"num_train_timesteps": 8, "beta_start": 0.01, "beta_end": 0.3}


def schedulers() -> dict[str, np.ndarray]:
    """Each step of each scheduler, `[levels, B, C, H, W]`, and what goes in: x, the network's output and the noise."""
    shape = (STEPS["num_train_timesteps"], 2, 1, 2, 3)
    generator = torch.Generator().manual_seed(0)
    # Estimates of x0 that leave [-1, 1], so that clipping and thresholding have an effect.
    x, output = (1.5 * torch.randn(shape, generator=generator) for _ in range(2))
    found = {}
    for name, (kind, options) in SCHEDULERS.items():
        scheduler = getattr(diffusers, kind)(**STEPS | options)
        scheduler.set_timesteps(shape[0])
        more = {"use_clipped_model_output": True} if kind == "DDIMScheduler" else {}
        steps = []
        for t in range(shape[0]):
            drawn = torch.Generator().manual_seed(t)
            steps.append(scheduler.step(output[t], t, x[t], generator=drawn, **more).prev_sample)
        found[name] = torch.stack(steps).numpy()
    noise = torch.stack([torch.randn(shape[1:], generator=torch.Generator().manual_seed(t)) for t in range(shape[0])])
    return found | {"x": x.numpy(), "output": output.numpy(), "noise": noise.numpy()}


# A class-conditional network with every option of ADM, for digits; tests/reference/adm.py has its formulas.
ADM = {"width": 4, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "heads": 2, "classes": 3, "groups": 2}


def adm() -> None:
    """The state dict of a small ADM, in half precision, as its training writes it; and the output of its network."""
    sys.path.insert(0, str(DATA.parent))
    from reference.adm import UNet

    sizes = (ADM["width"], ADM["multipliers"], ADM["blocks"], ADM["attention"], lambda width: ADM["heads"])
    net = alive(UNet(8, 1, 2, *sizes, True, "block", ADM["classes"], ADM["groups"])).half()
    torch.save(net.state_dict(), DATA / "ema_0.9999_000012.pt")
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(3, 1, 8, 8, generator=generator), torch.tensor([0.0, 250.0, 999.0])
    with torch.no_grad():
        y = net.float()(x, t, torch.tensor([2, 0, 1]))
    np.savez(DATA / "adm.npz", x=x.numpy(), t=t.numpy(), y=y.numpy(), label=np.array([2, 0, 1]))


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    unet2d()
    pth()
    adm()
    np.savez(DATA / "schedulers.npz", **schedulers())
