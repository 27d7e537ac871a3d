"""What INT8 costs and keeps, beside onnxruntime and modelopt: `make bench-calibration`.

Four models (`models`), three tools (`tools`), 32, 128 and 512 samples, one sample a run. Each tool works in a process
of its own, whose peak of memory and CPU seconds are measured (`processes`); what it made is run on held-out inputs
beside the float32 model (`scores`); and what trtforge made is built with TensorRT-RTX, and the plan's own graph is read
(`plans`). `judgement` holds the figures to what was promised.

    python -m benchmarks.calibration                                   the whole: an hour, 9 GB of memory
    python -m benchmarks.calibration --models rec --samples 32 --tools ours   a piece of it
    python -m benchmarks.calibration --work DIR                        keeps models, data and results, and reuses them
"""
