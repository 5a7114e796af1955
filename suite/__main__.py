"""`python -m suite` is `suite`."""

from suite.cli import main

main()
