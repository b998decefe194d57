import sys

from envs.pocket.cli import main

sys.exit(main(sys.argv[1:]))
