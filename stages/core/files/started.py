"""Note when this process began to import its stage; `stages/__init__.py` imports this module before all others."""

import time

STARTED = time.time()  # seconds since the epoch
