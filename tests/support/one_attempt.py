"""One attempt of a trial in this process, as a worker runs it: `one_attempt.py ASSIGNMENT.json`."""

import json
import sys
from pathlib import Path

from orchestrator.worker import train_loop

train_loop(json.loads(Path(sys.argv[1]).read_text()), by_itself=True)
