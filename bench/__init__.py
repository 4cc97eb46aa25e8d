"""The harness: suites become runs, each in a fresh process, measured, with a record of it."""
