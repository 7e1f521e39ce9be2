"""vLLM as an engine: its own workers, with weights and KV cache in Baton's pools and the weight sync mixed in."""
