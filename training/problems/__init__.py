"""Generators of the demo model's problems: training draws from one side, `remuda eval` asks the other."""
