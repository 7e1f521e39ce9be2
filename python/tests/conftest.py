"""For all tests."""

import os

# Before torch is imported: threads that spin while they wait for each other make small sums take seconds where other
# processes want the cores too.
os.environ["OMP_NUM_THREADS"] = "1"
