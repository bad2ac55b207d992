"""`python -m kairosbuild.node`: the machine's program."""

import sys

from kairosbuild.node.main import main

sys.exit(main())
