"""How one stage turns files into files. The contract is `stages.stage`; `STAGES` lists what there is.

A new stage is its module, one line here, and a place in a flow's YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages import (
    bench,
    build,
    calibrate,
    cast,
    export,
    keep_float,
    layers,
    modelopt_quantize,
    operators,
    publish,
    quantize,
    quantize_weights,
    ranges,
    refit,
    sensitivity,
    signature,
    split,
    surgery,
    validate,
)
from stages.stage import Stage

STAGES: Mapping[str, Stage[Any]] = {
    module.STAGE.name: module.STAGE
    for module in (
        signature,
        operators,
        export,
        surgery,
        cast,
        calibrate,
        ranges,
        sensitivity,
        keep_float,
        quantize,
        quantize_weights,
        modelopt_quantize,
        split,
        build,
        refit,
        layers,
        validate,
        bench,
        publish,
    )
}
