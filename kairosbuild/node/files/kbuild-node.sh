#!/bin/sh
# The machine's program on its own Python, loader and libraries: nothing of the image's is needed but a shell.
exec /usr/lib/kbuild/lib/loader --library-path /usr/lib/kbuild/lib /usr/lib/kbuild/bin/python -I -S -B -m kairosbuild.node "$@"
