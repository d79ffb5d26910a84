#!/usr/bin/env python3
"""`main.py --mode export` under the name that its users know."""

import sys

from main import main

if __name__ == "__main__":
    sys.exit(main(mode="export"))
