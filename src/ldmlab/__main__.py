"""`python -m ldmlab` is the `ldmlab` command."""

from ldmlab.cli import main

main()
