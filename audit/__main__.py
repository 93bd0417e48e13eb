"""`python -m audit`: the same as the command `audit`."""

from audit.cli import main

main()
