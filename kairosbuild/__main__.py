"""`python -m kairosbuild` is `kbuild`."""

from kairosbuild.cli.main import run

run()
