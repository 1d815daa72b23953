"""The parts of `examples/plane_bridges.py`: its settings, laws, training, measures, pictures and report."""
