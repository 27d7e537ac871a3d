"""How one stage turns files into files. The contract is `stages.stage`; `STAGES` lists what there is.

A new stage is its module, one line here, and a place in a flow's YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages import build, calibrate, cast, export, publish, quantize, refit, signature, surgery, validate
from stages.stage import Stage

STAGES: Mapping[str, Stage[Any]] = {
    module.STAGE.name: module.STAGE
    for module in (
        signature,
        export,
        surgery,
        cast,
        calibrate,
        quantize,
        build,
        refit,
        validate,
        publish,
    )
}
