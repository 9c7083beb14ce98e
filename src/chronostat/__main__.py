"""``python -m chronostat``."""

from chronostat.cli import main

main()
