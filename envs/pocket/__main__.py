"""`python -m envs.pocket up|status|down`."""

import sys

from envs.pocket.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
