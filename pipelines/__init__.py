"""When things run: the step graph, keys, runners, Prefect flows and the command line."""
