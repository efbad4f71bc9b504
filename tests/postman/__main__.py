"""`python -m tests.postman postman`: see the package."""

import sys
from pathlib import Path

from tests.postman.collection import write

write(Path(sys.argv[1]))
