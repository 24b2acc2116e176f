"""`python -m vtryon`: the `vtryon` command."""

from vtryon.cli import main

if __name__ == "__main__":
    main()
