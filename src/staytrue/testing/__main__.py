"""`python -m torch.distributed.run ... -m staytrue.testing FOLDER`: one of the processes of `two_processes`."""

import sys
from pathlib import Path

from staytrue.testing.processes import one_of_two

one_of_two(Path(sys.argv[1]))
