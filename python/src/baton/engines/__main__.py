"""`python -m baton.engines`: started by the controller."""

import os
import sys

from baton.engines.process import main

# vLLM's worker processes import this module again.
if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Interpreter shutdown frees torch's pools after the allocators that they stand on.
    os._exit(code)
