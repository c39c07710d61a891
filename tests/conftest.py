"""One thread for every test and every process it starts: tests then neither wait for each other nor depend on cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
