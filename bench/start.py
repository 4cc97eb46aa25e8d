"""Where the command begins: nothing slow is imported before an interrupt can be answered."""

import sys


def main() -> None:
    """Run the command line; an interrupt is exit code 130, also while libraries load."""
    try:
        from bench.cli import main as run  # why here: it imports torch, for seconds

        run()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)
