"""The resampling of Karras et al. 2022's augmentation pipeline, step by step as NVlabs/edm does it, in PyTorch."""

import math

import numpy as np
import torch
import torch.nn.functional as F

TAPS = [
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466),
    *(0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578),
    *(0.0017677118642428036, -0.007800708325034148),
]
SYM6 = np.array(TAPS, np.float32)


def shifted(x, y):
    return torch.tensor([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=torch.float32)


def scaled(x, y):
    return torch.tensor([[x, 0, 0], [0, y, 0], [0, 0, 1]], dtype=torch.float32)


def turned(by):
    return torch.tensor([[math.cos(by), -math.sin(by), 0], [math.sin(by), math.cos(by), 0], [0, 0, 1]])


def inverse(scale, turn, stretch, along, shift, width, height):
    """G^-1 `[3, 3]`: it maps a pixel (x, y, 1) of the result, relative to the centre, to its place in the source."""
    s, a = 2 ** (0.2 * scale), 2 ** (0.2 * stretch)
    axes = turned(-along) @ scaled(1 / a, a) @ turned(along)
    return scaled(1 / s, 1 / s) @ turned(turn) @ axes @ shifted(-shift[0] * width / 8, -shift[1] * height / 8)


def warp(images, g):
    """`images` [N, C, H, W], g [N, 3, 3]."""
    n, c, h, w = images.shape
    pad, cx, cy = len(SYM6) // 4, (w - 1) / 2, (h - 1) / 2
    corners = g @ torch.tensor([[-cx, -cy, 1], [cx, -cy, 1], [cx, cy, 1], [-cx, cy, 1]]).t()
    edge = corners[:, :2].permute(1, 0, 2).flatten(1)
    margin = torch.cat([-edge, edge]).max(dim=1).values + torch.tensor([2 * pad - cx, 2 * pad - cy] * 2)
    margin = margin.clamp(min=0).minimum(torch.tensor([w - 1, h - 1] * 2)).ceil().int()
    x0, y0, x1, y1 = margin.tolist()
    images = F.pad(images, [x0, x1, y0, y1], mode="reflect")
    g = shifted((x0 - x1) / 2, (y0 - y1) / 2) @ g

    weight, reach = torch.tensor(SYM6[::-1].copy()).tile(c, 1, 1), (len(SYM6) + 1) // 2
    images = torch.stack([images, torch.zeros_like(images)], 4).reshape(n, c, images.shape[2], -1)[..., :-1]
    images = F.conv2d(images, weight.unsqueeze(2), groups=c, padding=[0, reach])
    images = torch.stack([images, torch.zeros_like(images)], 3).reshape(n, c, -1, images.shape[3])[:, :, :-1]
    images = F.conv2d(images, weight.unsqueeze(3), groups=c, padding=[reach, 0])
    g = shifted(-0.5, -0.5) @ scaled(2, 2) @ g @ scaled(0.5, 0.5) @ shifted(0.5, 0.5)

    size = [n, c, (h + 2 * pad) * 2, (w + 2 * pad) * 2]
    g = scaled(2 / images.shape[3], 2 / images.shape[2]) @ g @ scaled(size[3] / 2, size[2] / 2)
    grid = F.affine_grid(g[:, :2], size, align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    weight, reach = torch.tensor(SYM6).tile(c, 1, 1), (len(SYM6) - 1) // 2
    images = F.conv2d(images, weight.unsqueeze(2), groups=c, stride=[1, 2], padding=[0, reach])[..., pad:-pad]
    return F.conv2d(images, weight.unsqueeze(3), groups=c, stride=[2, 1], padding=[reach, 0])[:, :, pad:-pad]
