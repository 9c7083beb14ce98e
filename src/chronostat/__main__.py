"""``python -m chronostat``."""

from chronostat.cli.app import main

main()
