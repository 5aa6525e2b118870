"""`python -m persyn_datasets` is `persyn`."""

import sys

from persyn_datasets.cli import main

sys.exit(main())
