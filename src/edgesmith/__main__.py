"""`python -m edgesmith` is the `edgesmith` command."""

import sys

from .cli import main

sys.exit(main())
