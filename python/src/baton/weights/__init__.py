"""How the trainer's weights reach an engine: recorded copies, the copy plan, and the worker's side of a sync."""
