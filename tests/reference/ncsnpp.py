"""NCSN++ and DDPM++ in PyTorch, written from the papers and from the contents of state dicts, to test our networks.

`ScoreSDE` has the names of arrays that score_sde_pytorch has (`all_modules.N...`), `EDM` those of NVlabs/edm
(`model.enc.32x32_block0...`), and each computes in its own library's order.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def kernel(taps):
    k = torch.tensor(taps, dtype=torch.float32)
    k = torch.outer(k, k)
    return k / k.sum()


def upfirdn(x, k, up=1, down=1, pad=(0, 0)):
    """StyleGAN2's upfirdn: `up - 1` zeros after each pixel, padding, convolution, every `down`-th pixel."""
    b, c, h, w = x.shape
    z = x.new_zeros(b, c, h, up, w, up)
    z[:, :, :, 0, :, 0] = x
    z = F.pad(z.reshape(b, c, h * up, w * up), (*pad, *pad))
    return F.conv2d(z, k.flip((0, 1)).expand(c, 1, -1, -1), groups=c)[:, :, ::down, ::down]


def group_norm(channels):
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


# --- as score_sde_pytorch has it
# ------------------------------------------------------------------------------------


class Fourier(nn.Module):
    def __init__(self, channels, scale):
        super().__init__()
        self.W = nn.Parameter(torch.randn(channels) * scale, requires_grad=False)

    def forward(self, c):
        angle = c[:, None] * self.W[None, :] * 2 * math.pi
        return torch.cat([angle.sin(), angle.cos()], 1)


class NIN(nn.Module):
    def __init__(self, inner, outer):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.zeros(inner, outer)), nn.Parameter(torch.zeros(outer))

    def forward(self, x):
        return torch.einsum("bchw,cd->bdhw", x, self.W) + self.b[:, None, None]


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.GroupNorm_0 = group_norm(channels)
        for i in range(4):
            setattr(self, f"NIN_{i}", NIN(channels, channels))

    def forward(self, x):
        h = self.GroupNorm_0(x)
        q, k, v = (getattr(self, f"NIN_{i}")(h).flatten(2) for i in range(3))
        w = (q.transpose(1, 2) @ k / math.sqrt(x.shape[1])).softmax(-1)
        return (x + self.NIN_3((v @ w.transpose(1, 2)).reshape(x.shape))) / math.sqrt(2)


class Residual(nn.Module):
    def __init__(self, inner, outer, emb, fir, move=None):
        super().__init__()
        self.fir, self.move = fir, move
        self.GroupNorm_0, self.Conv_0 = group_norm(inner), nn.Conv2d(inner, outer, 3, padding=1)
        self.Dense_0 = nn.Linear(emb, outer)
        self.GroupNorm_1, self.Conv_1 = group_norm(outer), nn.Conv2d(outer, outer, 3, padding=1)
        if move or inner != outer:
            self.Conv_2 = nn.Conv2d(inner, outer, 1)

    def moved(self, x):
        b, c, h, w = x.shape
        if self.move == "up":
            if self.fir is None:
                return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            return upfirdn(x, 4 * self.fir, up=2, pad=(2, 1))
        if self.move == "down":
            if self.fir is None:
                return x.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))
            return upfirdn(x, self.fir, down=2, pad=(1, 1))
        return x

    def forward(self, x, e):
        h = self.Conv_0(self.moved(F.silu(self.GroupNorm_0(x)))) + self.Dense_0(F.silu(e))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        x = self.moved(x)
        return ((self.Conv_2(x) if hasattr(self, "Conv_2") else x) + h) / math.sqrt(2)


class PyramidDown(nn.Module):
    def __init__(self, inner, outer, fir):
        super().__init__()
        self.fir = fir
        self.Conv2d_0 = nn.Conv2d(inner, outer, 3, stride=2)

    def forward(self, x):
        return self.Conv2d_0(upfirdn(x, self.fir, pad=(2, 2)))


class ScoreSDE(nn.Module):
    """`forward(x, c)`: for NCSN++ x is in [-1, 1]. c is sigma with Fourier features, and the index without them."""

    def __init__(self, size, nf, mult, blocks, attention, fourier, fir, residual, by_sigma, scale=16.0):
        super().__init__()
        fir = kernel((1, 3, 3, 1)) if fir else None
        self.nf, self.mult, self.blocks, self.attention = nf, mult, blocks, attention
        self.fourier, self.residual, self.by_sigma = fourier, residual, by_sigma
        emb = 4 * nf
        m = [Fourier(nf, scale)] if fourier else []
        m += [nn.Linear(2 * nf if fourier else nf, emb), nn.Linear(emb, emb), nn.Conv2d(3, nf, 3, padding=1)]
        kept, ch, pyramid = [nf], nf, 3
        for i, k in enumerate(mult):
            for _ in range(blocks):
                m.append(Residual(ch, nf * k, emb, fir))
                ch = nf * k
                if size >> i in attention:
                    m.append(Attention(ch))
                kept.append(ch)
            if i < len(mult) - 1:
                m.append(Residual(ch, ch, emb, fir, "down"))
                if residual:
                    m.append(PyramidDown(pyramid, ch, fir))
                    pyramid = ch
                kept.append(ch)
        m += [Residual(ch, ch, emb, fir), Attention(ch), Residual(ch, ch, emb, fir)]
        for i, k in reversed(list(enumerate(mult))):
            for _ in range(blocks + 1):
                m.append(Residual(ch + kept.pop(), nf * k, emb, fir))
                ch = nf * k
            if size >> i in attention:
                m.append(Attention(ch))
            if i:
                m.append(Residual(ch, ch, emb, fir, "up"))
        m += [group_norm(ch), nn.Conv2d(ch, 3, 3, padding=1)]
        self.all_modules = nn.ModuleList(m)

    def forward(self, x, c):
        m = iter(self.all_modules)
        if self.fourier:
            e = next(m)(c.log())
        else:
            half = self.nf // 2
            f = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000) / (half - 1)))
            e = torch.cat([(c[:, None] * f).sin(), (c[:, None] * f).cos()], 1)
        e = next(m)(e)
        e = next(m)(F.silu(e))
        pyramid, kept = x, [next(m)(x)]
        for i in range(len(self.mult)):
            for _ in range(self.blocks):
                h = next(m)(kept[-1], e)
                if h.shape[-1] in self.attention:
                    h = next(m)(h)
                kept.append(h)
            if i < len(self.mult) - 1:
                h = next(m)(kept[-1], e)
                if self.residual:
                    h = pyramid = (next(m)(pyramid) + h) / math.sqrt(2)
                kept.append(h)
        h = next(m)(kept[-1], e)
        h = next(m)(h)
        h = next(m)(h, e)
        for i in reversed(range(len(self.mult))):
            for _ in range(self.blocks + 1):
                h = next(m)(torch.cat([h, kept.pop()], 1), e)
            if h.shape[-1] in self.attention:
                h = next(m)(h)
            if i:
                h = next(m)(h, e)
        h = next(m)(h)
        h = next(m)(F.silu(h))
        assert not kept and next(m, None) is None
        return h / c[:, None, None, None] if self.by_sigma else h


# --- as NVlabs/edm has it
# -------------------------------------------------------------------------------------------


class Conv(nn.Module):
    """A convolution after doubling or halving; with `fused`, the convolution comes before the halving's filter."""

    def __init__(self, inner, outer, size, taps, move=None, fused=False):
        super().__init__()
        self.inner, self.outer, self.move, self.fused = inner, outer, move, fused
        self.weight, self.bias = nn.Parameter(torch.zeros(outer, inner, size, size)), nn.Parameter(torch.zeros(outer))
        if move:
            self.register_buffer("resample_filter", kernel(taps)[None, None])

    def forward(self, x):
        edge = self.weight.shape[-1] // 2
        if self.move:
            f, reach = self.resample_filter, (self.resample_filter.shape[-1] - 1) // 2
        if self.move == "down" and self.fused:
            x = F.conv2d(x, self.weight, padding=edge + reach)
            return F.conv2d(x, f.tile(self.outer, 1, 1, 1), self.bias, groups=self.outer, stride=2)
        if self.move == "down":
            x = F.conv2d(x, f.tile(self.inner, 1, 1, 1), groups=self.inner, stride=2, padding=reach)
        if self.move == "up":
            f = 4 * f.tile(self.inner, 1, 1, 1)
            x = F.conv_transpose2d(x, f, groups=self.inner, stride=2, padding=reach)
        return F.conv2d(x, self.weight, self.bias, padding=edge)


class Block(nn.Module):
    def __init__(self, inner, outer, emb, taps, move=None, attention=False):
        super().__init__()
        self.norm0, self.conv0 = group_norm(inner), Conv(inner, outer, 3, taps, move)
        self.affine = nn.Linear(emb, outer)
        self.norm1, self.conv1 = group_norm(outer), Conv(outer, outer, 3, taps)
        self.skip = Conv(inner, outer, 1, taps, move) if move or inner != outer else None
        self.inner, self.outer, self.attention = inner, outer, attention
        if attention:
            self.norm2 = group_norm(outer)
            self.qkv, self.proj = Conv(outer, 3 * outer, 1, taps), Conv(outer, outer, 1, taps)

    def forward(self, x, e):
        h = self.conv0(F.silu(self.norm0(x))) + self.affine(e)[:, :, None, None]
        h = self.conv1(F.silu(self.norm1(h)))
        x = (h + (x if self.skip is None else self.skip(x))) * math.sqrt(0.5)
        if self.attention:
            # the query, key and value of a channel lie side by side
            q, k, v = self.qkv(self.norm2(x)).reshape(len(x), self.outer, 3, -1).unbind(2)
            w = torch.einsum("bcq,bck->bqk", q, k / math.sqrt(self.outer)).softmax(2)
            x = (self.proj(torch.einsum("bqk,bck->bcq", w, v).reshape(x.shape)) + x) * math.sqrt(0.5)
        return x


class Frequencies(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(count))


class SongUNet(nn.Module):
    def __init__(self, size, channels, mult, blocks, attention, fourier, taps, residual, classes, augment):
        super().__init__()
        self.channels, self.classes = channels, classes
        noise, emb = channels * (1 + fourier), 4 * channels
        if fourier:
            self.map_noise = Frequencies(channels)
        if classes:
            self.map_label = nn.Linear(classes, noise)
        if augment:
            self.map_augment = nn.Linear(augment, noise, bias=False)
        self.map_layer0, self.map_layer1 = nn.Linear(noise, emb), nn.Linear(emb, emb)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        ch, aux, kept = channels, 3, [channels]
        self.enc[f"{size}x{size}_conv"] = Conv(3, ch, 3, taps)
        for i, k in enumerate(mult):
            at = f"{size >> i}x{size >> i}"
            if i:
                self.enc[f"{at}_down"] = Block(ch, ch, emb, taps, "down")
                if residual:
                    self.enc[f"{at}_aux_residual"] = Conv(aux, ch, 3, taps, "down", fused=True)
                    aux = ch
                kept.append(ch)
            for j in range(blocks):
                self.enc[f"{at}_block{j}"] = Block(ch, channels * k, emb, taps, None, size >> i in attention)
                ch = channels * k
                kept.append(ch)
        for i, k in reversed(list(enumerate(mult))):
            at = f"{size >> i}x{size >> i}"
            if i == len(mult) - 1:
                self.dec[f"{at}_in0"] = Block(ch, ch, emb, taps, None, True)
                self.dec[f"{at}_in1"] = Block(ch, ch, emb, taps)
            else:
                self.dec[f"{at}_up"] = Block(ch, ch, emb, taps, "up")
            for j in range(blocks + 1):
                attends = j == blocks and size >> i in attention
                self.dec[f"{at}_block{j}"] = Block(ch + kept.pop(), channels * k, emb, taps, None, attends)
                ch = channels * k
        self.dec[f"{size}x{size}_aux_norm"] = group_norm(ch)
        self.dec[f"{size}x{size}_aux_conv"] = Conv(ch, 3, 3, taps)

    def forward(self, x, c, one_hot=None, augment=None):
        if hasattr(self, "map_noise"):
            angle = c.outer(2 * math.pi * self.map_noise.freqs)
        else:
            half = self.channels // 2
            angle = c.outer((1 / 10000) ** (torch.arange(half, dtype=torch.float32) / (half - 1)))
        e = torch.cat([angle.cos(), angle.sin()], 1)
        e = e.reshape(len(e), 2, -1).flip(1).reshape(e.shape)
        if self.classes:
            e = e + self.map_label(one_hot * math.sqrt(self.classes))
        if augment is not None:
            e = e + self.map_augment(augment)
        e = F.silu(self.map_layer1(F.silu(self.map_layer0(e))))
        kept, aux = [], x
        for name, block in self.enc.items():
            if "aux_residual" in name:
                x = kept[-1] = aux = (x + block(aux)) / math.sqrt(2)
            else:
                x = block(x, e) if isinstance(block, Block) else block(x)
                kept.append(x)
        for name, block in self.dec.items():
            if isinstance(block, Block):
                if x.shape[1] != block.inner:
                    x = torch.cat([x, kept.pop()], 1)
                x = block(x, e)
            else:
                x = block(F.silu(x)) if "aux_conv" in name else block(x)
        return x


class EDM(nn.Module):
    """`forward(x, sigma)`: the denoiser D(x; sigma) of Karras et al. 2022, eq. 7."""

    def __init__(self, std=0.5, **options):
        super().__init__()
        self.model, self.std = SongUNet(**options), std

    def forward(self, x, sigma, one_hot=None, augment=None):
        s, d = sigma[:, None, None, None], self.std
        out = self.model(x / torch.sqrt(s**2 + d**2), sigma.log() / 4, one_hot, augment)
        return d**2 / (s**2 + d**2) * x + s * d / torch.sqrt(s**2 + d**2) * out
