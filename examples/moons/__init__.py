"""The parts of `examples/half_moons.py`: its models, its measures, its pictures and its report."""
