"""The rules by which Q/DQ are placed for TensorRT, one a file; the contract is `stages.placement.contract`.

Their order stands in `stages/quantization.py`, which is the door to them.
"""
