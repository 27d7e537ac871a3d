"""A catalog through a real Prefect server and workers that are killed: `make bench-scale`.

Small models (`catalog`) are built for four targets: a queue, a worker process and a deployment of `rebuild` for each,
two stores that share a remote, one server with SQLite or PostgreSQL behind it (`services`). Workers, the processes of
their runs and builders are killed at random (`chaos`), and what crashed is put back on its queue. What was written is
watched from outside (`witness`), what it took is read from /proc (`usage`), and `claims` holds all of it to what was
promised.

    python -m benchmarks.scale --work DIR                               200 models, a kill every 20 s: half an hour
    python -m benchmarks.scale --work DIR --models 12 --chaos 8         a piece of it: 3 minutes
    python -m benchmarks.scale --work DIR --database postgresql --chaos 0
"""
