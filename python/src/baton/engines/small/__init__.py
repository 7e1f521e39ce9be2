"""The small engine: a torch model over real tensor-parallel processes, with the life cycle of a vLLM worker."""
