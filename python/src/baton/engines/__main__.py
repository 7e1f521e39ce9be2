"""`python -m baton.engines`: started by the controller."""

import sys

from baton.engines.process import main

sys.exit(main())
