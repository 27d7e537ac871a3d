"""What is built: the YAML groups, the dataclasses behind them, and how they are composed."""
