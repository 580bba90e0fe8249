"""``python -m openaudience``: the same as the program ``openaudience``."""

from openaudience.cli import run

if __name__ == "__main__":
    run()
