"""NCSN's and NCSNv2's networks in PyTorch, written from the papers and with the names of their authors' state dicts."""

import torch
import torch.nn.functional as F
from torch import nn


def conv(inputs, outputs, size=3, dilation=1, bias=True):
    return nn.Conv2d(inputs, outputs, size, padding=dilation * (size // 2), dilation=dilation, bias=bias)


def plus(x, gamma, alpha, beta):
    """InstanceNorm++ with constants [B or 1, C]."""
    mu = x.mean((2, 3))
    shift = (mu - mu.mean(1, keepdim=True)) / torch.sqrt(torch.var(mu, 1, keepdim=True) + 1e-5)
    y = F.instance_norm(x, eps=1e-5)
    return gamma[:, :, None, None] * (y + (alpha * shift)[:, :, None, None]) + beta[:, :, None, None]


class Plain(nn.Module):
    def __init__(self, channels):
        super().__init__()
        for name in ("alpha", "gamma", "beta"):
            setattr(self, name, nn.Parameter(torch.zeros(channels)))

    def forward(self, x, y):
        return plus(x, self.gamma[None], self.alpha[None], self.beta[None])


class Conditional(nn.Module):
    def __init__(self, channels, levels):
        super().__init__()
        self.embed = nn.Embedding(levels, 3 * channels)

    def forward(self, x, y):
        return plus(x, *self.embed(y).chunk(3, dim=1))


class MeanOfFour(nn.Module):
    """A convolution, then the mean of four strided slices."""

    def __init__(self, inputs, outputs, size):
        super().__init__()
        self.conv = conv(inputs, outputs, size)

    def forward(self, x):
        x = self.conv(x)
        return sum(x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4


class Residual(nn.Module):
    def __init__(self, inputs, outputs, norm, down, dilation):
        super().__init__()
        self.normalize1, self.normalize2 = norm(inputs), norm(inputs if down else outputs)
        self.conv1 = conv(inputs, inputs if down else outputs, dilation=dilation)
        if down and dilation == 1:
            self.conv2, self.shortcut = MeanOfFour(inputs, outputs, 3), MeanOfFour(inputs, outputs, 1)
        else:
            self.conv2 = conv(inputs if down else outputs, outputs, dilation=dilation)
            self.shortcut = conv(inputs, outputs, dilation=dilation) if down else nn.Identity()

    def forward(self, x, y):
        h = self.conv1(F.elu(self.normalize1(x, y)))
        return self.shortcut(x) + self.conv2(F.elu(self.normalize2(h, y)))


class Units(nn.Module):
    """Residual convolution units (RCU), with norms or without."""

    def __init__(self, channels, blocks, norm):
        super().__init__()
        self.names = [[f"{i}_{j}" for j in (1, 2)] for i in range(1, blocks + 1)]
        for name in (name for block in self.names for name in block):
            if norm:
                self.add_module(f"{name}_norm", norm(channels))
            self.add_module(f"{name}_conv", conv(channels, channels, bias=False))

    def forward(self, x, y):
        modules = dict(self.named_children())
        for block in self.names:
            h = x
            for name in block:
                if f"{name}_norm" in modules:
                    h = modules[f"{name}_norm"](h, y)
                h = modules[f"{name}_conv"](F.elu(h))
            x = x + h
        return x


class Layers(nn.Module):
    """A convolution for each entry of `inputs`, each with a norm unless `norm` is None."""

    def __init__(self, inputs, outputs, norm, bias):
        super().__init__()
        self.convs = nn.ModuleList([conv(i, outputs, bias=bias) for i in inputs])
        if norm:
            self.norms = nn.ModuleList([norm(i) for i in inputs])

    def normed(self, i, x, y):
        return self.norms[i](x, y) if hasattr(self, "norms") else x


class Refine(nn.Module):
    def __init__(self, inputs, outputs, norm, end=False):
        super().__init__()
        self.adapt_convs = nn.ModuleList([Units(i, 2, norm) for i in inputs])
        if len(inputs) > 1:
            self.msf = Layers(inputs, outputs, norm, bias=True)
        self.crp = Layers([outputs] * 2, outputs, norm, bias=False)
        self.output_convs = Units(outputs, 3 if end else 1, norm)
        self.pool = nn.AvgPool2d(5, 1, 2) if norm else nn.MaxPool2d(5, 1, 2)

    def forward(self, xs, y):
        hs = [unit(x, y) for unit, x in zip(self.adapt_convs, xs, strict=True)]
        h = hs[0]
        if len(hs) > 1:
            h = sum(
                F.interpolate(
                    self.msf.convs[i](self.msf.normed(i, x, y)),
                    size=xs[0].shape[2:],
                    mode="bilinear",
                    align_corners=True,
                )
                for i, x in enumerate(hs)
            )
        h = F.elu(h)
        path = h
        for i in range(2):
            path = self.crp.convs[i](self.pool(self.crp.normed(i, path, y)))
            h = h + path
        return self.output_convs(h, y)


class RefineNet(nn.Module):
    """NCSN's network if `levels` is given, NCSNv2's if `sigmas`, noisiest first, is given.

    x is centred, and y is the index of the level, 0 for the noisiest.
    """

    def __init__(self, channels, images, levels=None, sigmas=None):
        super().__init__()
        n, self.sigmas = channels, sigmas
        norm = Plain if levels is None else lambda c: Conditional(c, levels)
        within = None if levels is None else norm
        self.begin_conv, self.end_conv, self.normalizer = conv(images, n), conv(n, images), norm(n)
        stages = [(n, n, 1), (n, 2 * n, 1), (2 * n, 2 * n, 2), (2 * n, 2 * n, 4)]
        for i, (inputs, outputs, dilation) in enumerate(stages):
            first = Residual(inputs, outputs, norm, i > 0, dilation)
            self.add_module(f"res{i + 1}", nn.ModuleList([first, Residual(outputs, outputs, norm, False, dilation)]))
        self.refine1 = Refine([2 * n], 2 * n, within)
        self.refine2 = Refine([2 * n, 2 * n], 2 * n, within)
        self.refine3 = Refine([2 * n, 2 * n], n, within)
        self.refine4 = Refine([n, n], n, within, end=True)

    def forward(self, x, y):
        kept, h = [], self.begin_conv(x)
        for stage in (self.res1, self.res2, self.res3, self.res4):
            for block in stage:
                h = block(h, y)
            kept.append(h)
        h = self.refine1([kept[3]], y)
        for refine, x in zip((self.refine2, self.refine3, self.refine4), reversed(kept[:3]), strict=True):
            h = refine([x, h], y)
        h = self.end_conv(F.elu(self.normalizer(h, y)))
        return h if self.sigmas is None else h / self.sigmas[y][:, None, None, None]
