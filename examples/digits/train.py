"""Trains the digits network and writes what trtforge builds from, in well under two minutes on two CPU cores.

    python -m examples.digits.train --out conf/data/digits

Writes `digits.safetensors` (the weights), `digits.onnx` (batch normalisation still in it), `calibration.npz` (256 of
the training images) and `holdout.npz` (360 images and labels that nothing was trained or calibrated on).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional

from examples.digits.network import Digits, load
from stages import onnx_file

HOLDOUT_IMAGES = 360
CALIBRATION_IMAGES = 256
SPLIT_SEED = 0
"""The split never follows `--seed`: weights trained with another seed are still judged on unseen images."""
LEAST_ACCURACY = 0.98
BATCH = 64


@dataclass(frozen=True)
class Data:
    """Images `(N, 1, 8, 8)` float32 in [0, 1] and labels `(N,)` int64."""

    train_images: np.ndarray
    train_labels: np.ndarray
    holdout_images: np.ndarray
    holdout_labels: np.ndarray


def main() -> None:
    """Trains, judges, exports."""
    options = _options()
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)
    data = read_data()
    network = load(options.init) if options.init else Digits().eval()
    train(network, data, options.epochs, options.rate, options.seed)
    accuracy = judge(network, data)
    count = sum(parameter.numel() for parameter in network.parameters())
    print(f"{count} parameters, accuracy on {HOLDOUT_IMAGES} held-out images: {accuracy:.4f}")
    if accuracy < LEAST_ACCURACY:
        raise SystemExit(f"accuracy {accuracy:.4f} is below {LEAST_ACCURACY}: nothing written; train more epochs")
    options.out.mkdir(parents=True, exist_ok=True)
    write_weights(network, options.out / "digits.safetensors")
    write_onnx(network, options.out / "digits.onnx")
    write_data(data, options.out)


def read_data() -> Data:
    """scikit-learn's digits, split once and for all, each digit in proportion."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    parts = train_test_split(images, labels, test_size=HOLDOUT_IMAGES, random_state=SPLIT_SEED, stratify=labels)
    train_images, holdout_images, train_labels, holdout_labels = parts
    return Data(train_images, train_labels, holdout_images, holdout_labels)


def train(network: torch.nn.Module, data: Data, epochs: int, rate: float, seed: int) -> None:
    """Trains `network` in place: AdamW under a one-cycle schedule up to `rate`, images shifted by up to one pixel."""
    if epochs == 0:
        return
    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=generator).split(BATCH):
            logits = network(_shifted(images[chosen], generator))
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()


def judge(network: torch.nn.Module, data: Data) -> float:
    """The share of held-out images that `network` names right."""
    with torch.no_grad():
        named = network(torch.from_numpy(data.holdout_images)).argmax(dim=1).numpy()
    return float((named == data.holdout_labels).mean())


def write_weights(network: torch.nn.Module, path: Path) -> None:
    """Writes the state of `network` as safetensors."""
    from safetensors.torch import save

    # `save_file` makes a file that only its owner can read.
    path.write_bytes(save(network.state_dict()))


def write_onnx(network: torch.nn.Module, path: Path) -> None:
    """Exports `network` without folding anything: cleaning up is what trtforge shows with it."""
    program = torch.onnx.export(
        network,
        (torch.zeros(2, 1, 8, 8),),
        dynamo=True,
        optimize=False,
        external_data=False,
        opset_version=20,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=4096)}},
        verbose=False,
    )
    model = program.model_proto
    onnx_file.strip_provenance(model)
    onnx_file.write(model, path)


def write_data(data: Data, out: Path) -> None:
    """Writes the first training images for calibration (the split has shuffled them), and the held-out ones."""
    np.savez_compressed(out / "calibration.npz", images=data.train_images[:CALIBRATION_IMAGES])
    np.savez_compressed(out / "holdout.npz", images=data.holdout_images, labels=data.holdout_labels)


def _shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every image moved by -1, 0 or 1 pixels down and right; what comes in is background."""
    moves = torch.randint(0, 3, (len(images), 2), generator=generator)
    padded = functional.pad(images, (1, 1, 1, 1))
    crops = [image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, moves.tolist(), strict=True)]
    return torch.stack(crops)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Trains the digits network and writes its ONNX, weights and data.")
    package_data = Path(__file__).parents[2] / "conf" / "data" / "digits"
    parser.add_argument("--out", type=Path, default=package_data, help="directory to write into (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=40, help="passes over the training images")
    parser.add_argument("--rate", type=float, default=5e-3, help="the largest learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the order and the shifts")
    parser.add_argument("--init", type=Path, help="safetensors to continue from instead of fresh weights")
    return parser.parse_args()


if __name__ == "__main__":
    main()
