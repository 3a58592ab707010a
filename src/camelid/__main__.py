"""`python -m camelid` is the `camelid` command."""

from camelid.cli.main import main

if __name__ == "__main__":
    main()
