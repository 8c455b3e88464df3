"""`python -m torch.distributed.run ... -m holdfast.testing FOLDER`: one of the processes of `two_processes`."""

import sys
from pathlib import Path

from holdfast.testing.processes import one_of_two

one_of_two(Path(sys.argv[1]))
