"""The U-Net of improved DDPM and ADM in PyTorch, written from the papers, with the names of their state dict.

Nichol & Dhariwal 2021 (arXiv:2102.09672) and Dhariwal & Nichol 2021 (arXiv:2105.05233). Details that the
papers leave open follow openai/improved-diffusion: features [cos, sin] of t at 1e4^(-i/half), eps = 1e-5 in the norms,
a pixel of padding on either side of every 3x3 convolution, and a 1x1 convolution for the query, key and value of one
head after another.
"""

import functools
import math

import torch
from torch import nn
from torch.nn import functional as F


class Slot(nn.ModuleList):
    """Modules by their place in a sequence, which also counts modules without parameters; these are left out here."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name.removeprefix("at"), module)

    def __getitem__(self, place):
        return self._modules[str(place)]


def norm(channels, groups):
    return nn.GroupNorm(groups, channels, eps=1e-5)


class ResBlock(nn.Module):
    def __init__(self, width, out, embedding, scale_shift, move=None, groups=32):
        super().__init__()
        self.scale_shift, self.move = scale_shift, move or (lambda x: x)
        self.in_layers = Slot(at0=norm(width, groups), at2=nn.Conv2d(width, out, 3, padding=1))
        self.emb_layers = Slot(at1=nn.Linear(embedding, 2 * out if scale_shift else out))
        self.out_layers = Slot(at0=norm(out, groups), at3=nn.Conv2d(out, out, 3, padding=1))
        if width != out:
            self.skip_connection = nn.Conv2d(width, out, 1)

    def forward(self, x, e):
        h = self.in_layers[2](self.move(F.silu(self.in_layers[0](x))))
        e = self.emb_layers[1](F.silu(e))[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
        else:
            h = self.out_layers[0](h + e)
        x = self.move(x)
        return (self.skip_connection(x) if hasattr(self, "skip_connection") else x) + self.out_layers[3](F.silu(h))


class Attention(nn.Module):
    def __init__(self, width, heads, groups=32):
        super().__init__()
        self.heads, self.norm = heads, norm(width, groups)
        self.qkv, self.proj_out = nn.Conv1d(width, 3 * width, 1), nn.Conv1d(width, width, 1)

    def forward(self, x, e):
        b, c, h, w = x.shape
        three = self.qkv(self.norm(x).flatten(2)).reshape(b, self.heads, 3, c // self.heads, h * w)
        q, k, v = three.transpose(-1, -2).unbind(2)
        return x + self.proj_out(F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, c, -1)).view_as(x)


class Down(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x, e):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x, e):
        return self.conv(double(x))


class First(nn.Conv2d):
    def forward(self, x, e):
        return super().forward(x)


def double(x):
    return F.interpolate(x, scale_factor=2, mode="nearest")


def halve(x):
    return F.avg_pool2d(x, 2)


class UNet(nn.Module):
    """Attention has `heads(width)` heads, and is at the levels whose image height is in `attention`."""

    def __init__(
        self,
        size,
        channels,
        out,
        width,
        multipliers,
        blocks,
        attention,
        heads,
        scale_shift,
        resample,
        classes=0,
        groups=32,
    ):
        super().__init__()
        residual, attend = functools.partial(ResBlock, groups=groups), functools.partial(Attention, groups=groups)
        self.width, e = width, 4 * width
        self.time_embed = Slot(at0=nn.Linear(width, e), at2=nn.Linear(e, e))
        if classes:
            self.label_emb = nn.Embedding(classes, e)

        def block(now, then, height):
            modules = [residual(now, then, e, scale_shift)]
            return modules + ([attend(then, heads(then))] if height in attention else [])

        widths = [width * m for m in multipliers]
        now, kept, down, up = width, [width], [[First(channels, width, 3, padding=1)]], []
        for i, then in enumerate(widths):
            for _ in range(blocks):
                down.append(block(now, then, size >> i))
                now = then
                kept.append(now)
            if i + 1 < len(widths):
                down.append([Down(now) if resample == "conv" else residual(now, now, e, scale_shift, halve)])
                kept.append(now)
        middle = [residual(now, now, e, scale_shift), attend(now, heads(now)), residual(now, now, e, scale_shift)]
        for i, then in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                up.append(block(now + kept.pop(), then, size >> i))
                now = then
            if i:
                up[-1].append(Up(now) if resample == "conv" else residual(now, now, e, scale_shift, double))
        self.input_blocks = nn.ModuleList(map(nn.ModuleList, down))
        self.middle_block = nn.ModuleList(middle)
        self.output_blocks = nn.ModuleList(map(nn.ModuleList, up))
        self.out = Slot(at0=norm(now, groups), at2=nn.Conv2d(now, out, 3, padding=1))

    def forward(self, x, t, label=None):
        half = self.width // 2
        angle = t[:, None] * torch.exp(-math.log(1e4) * torch.arange(half) / half)[None]
        e = self.time_embed[0](torch.cat([angle.cos(), angle.sin()], 1))
        e = self.time_embed[2](F.silu(e))
        if label is not None:
            e = e + self.label_emb(label)

        def run(modules, h):
            for module in modules:
                h = module(h, e)
            return h

        kept = [x]
        for modules in self.input_blocks:
            kept.append(run(modules, kept[-1]))
        h = run(self.middle_block, kept[-1])
        for modules in self.output_blocks:
            h = run(modules, torch.cat([h, kept.pop()], 1))
        return self.out[2](F.silu(self.out[0](h)))
