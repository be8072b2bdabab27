"""Runs pytest on the files it is given: the main program of the test targets in BUILD."""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(["-p", "no:cacheprovider", *sys.argv[1:]]))
