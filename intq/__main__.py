"""`python -m intq`: the `intq` command, also from a checkout that is not installed."""

from intq.cli import main

if __name__ == "__main__":
    main()
