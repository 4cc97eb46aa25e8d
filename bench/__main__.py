"""``python -m bench``: the command line without the console script."""

from bench.start import main

if __name__ == "__main__":
    main()
