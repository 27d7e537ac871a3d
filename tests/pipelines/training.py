"""A step of training without torch: what makes the weights of the digits network other ones of the same structure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from tests.stages.checkpoints import save, weights_of, with_weights

DATA = Path(__file__).parents[2] / "conf" / "data" / "digits"
DIGITS = DATA / "digits.onnx"
RATE, DECAY = 0.05, 1e-2


def train(out: Path) -> tuple[Path, Path]:
    """One step of gradient descent with weight decay; what comes of it as a checkpoint and as an ONNX file.

    The last layer goes down the gradient of the cross entropy, over the calibration images and the classes that the
    network itself names; every other weight decays, as AdamW has it decay beside its gradient.
    """
    model = onnx.load(str(DIGITS))
    weights = weights_of(model)
    features, logits = _run(model, np.load(DATA / "calibration.npz")["images"])
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    error = (shares - np.eye(10, dtype=np.float32)[logits.argmax(axis=1)]) / len(logits)
    trained = {
        name: array if "running" in name else (array * (1 - RATE * DECAY)).astype(np.float32)
        for name, array in weights.items()
    }
    trained["classify.weight"] = trained["classify.weight"] - RATE * error.T @ features
    trained["classify.bias"] = trained["classify.bias"] - RATE * error.sum(axis=0)
    onnx.save(with_weights(model, trained), str(out / "trained.onnx"))
    return save(out / "trained.safetensors", trained), out / "trained.onnx"


def _run(model: onnx.ModelProto, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What goes into the last layer, `(N, 48)`, and the logits, `(N, 10)`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(onnx.helper.make_tensor_value_info("mean", onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    features, logits = session.run(["mean", "logits"], {"images": images})
    return features, logits
