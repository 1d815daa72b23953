"""`python -m halfbridge`."""

import sys

from halfbridge.cli import main

sys.exit(main())
