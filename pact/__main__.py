"""`python -m pact` is `pact`."""

import sys

from pact.cli import main

sys.exit(main())
