"""``python -m layerswap`` is the command line."""

import sys

from layerswap.cli import main

sys.exit(main())
