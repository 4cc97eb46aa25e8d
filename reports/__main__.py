"""``python -m reports RESULTS``."""

from reports.main import main

if __name__ == "__main__":
    raise SystemExit(main())
