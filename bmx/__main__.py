"""`python -m bmx` is the console script `bmx`."""

import sys

from bmx.cli import main

if __name__ == '__main__':
  sys.exit(main())
