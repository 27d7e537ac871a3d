"""A small residual network for handwritten digits of 8 x 8 pixels.

trtforge's entry point is `examples.digits.network:load`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn


class Residual(nn.Module):
    """Two convolutions beside a shortcut: `(N, C_in, H, W) -> (N, C_out, H / stride, W / stride)`."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(channels_in, channels_out, stride)
        self.second = _convolution(channels_out, channels_out, 1)
        self.shortcut = nn.Identity() if stride == 1 else _convolution(channels_in, channels_out, stride, kernel=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Adds the shortcut to the second convolution, then ReLU."""
        y = self.second(torch.relu(self.first(x)))
        return torch.relu(y + self.shortcut(x))


class Digits(nn.Module):
    """Classifies digits: images `(N, 1, 8, 8)` float32 in [0, 1] to logits `(N, 10)` float32.

    Attributes:
        output_names: What the outputs are called in the ONNX file.
    """

    output_names: tuple[str, ...] = ("logits",)

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(1, 32, 1)
        self.blocks = nn.Sequential(Residual(32, 32, stride=1), Residual(32, 48, stride=2))
        self.classify = nn.Linear(48, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Stem, two residual blocks, global average pooling, one linear layer."""
        x = self.blocks(torch.relu(self.stem(images)))
        logits: torch.Tensor = self.classify(x.mean(dim=(2, 3)))
        return logits


def load(weights: Path) -> nn.Module:
    """The trained network in eval mode.

    Args:
        weights: A safetensors file of its state. It has no default: nobody wants a plan of untrained weights.
    """
    from safetensors.torch import load as load_state

    network = Digits()
    # From bytes, not by path: trtforge may hand over an object of its store, whose name has no suffix.
    network.load_state_dict(load_state(Path(weights).read_bytes()))
    return network.eval()


def _convolution(channels_in: int, channels_out: int, stride: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
    )
