"""`python -m remuda`."""

from remuda.cli.main import main

if __name__ == "__main__":
    main()
