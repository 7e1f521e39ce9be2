"""The parts of `baton bench` that need a GPU, one process each; on stand-in GPUs they run too, and compare nothing."""
