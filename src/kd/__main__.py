"""`python -m kd` is `kd`."""

from kd.cli import main

main()
