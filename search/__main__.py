"""`python -m search`: the same as `vqsearch`."""

from search.cli import main

main()
