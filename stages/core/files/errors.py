"""Define the errors that a person can fix, and report them as one clear message instead of a traceback.

ValueError
└── UserError: a mistake in the params, the data or the environment; exit status 1
    ├── TemporaryError: a failure that may pass; exit status 75 (EX_TEMPFAIL of sysexits.h)
    └── StageError (flows/stage.py): a stage of the flow that failed
"""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(ValueError):
    """Report a mistake in the params, the data or the environment: where it is, what was found, what is allowed."""


class TemporaryError(UserError):
    """Report a failure that may pass, such as of the network, so that another try may succeed."""


def did_you_mean(name: str, allowed: list[str]) -> str:
    """Return a question that suggests the most similar allowed name, or an empty string if none is similar."""
    near = get_close_matches(name, allowed, n=1)
    return f", did you mean '{near[0]}'?" if near else ""


def redact(text: str) -> str:
    """Return the text without the parts of its URLs that may be secret: user, password and query."""
    text = re.sub(r"://\S*@", "://***@", text)
    # A secret may contain any character except white space. Punctuation that follows the URL in a sentence is kept.
    return re.sub(r"(://[^\s?#]*)[?#]\S*?(['\"]?[)\]},.:;]*(?:\s|$))", r"\1?***\2", text)


# PyTorch has no exception types for the limits of a machine, so these texts identify them.
MACHINE = {
    "out of memory|allocate memory": "out of memory, try a smaller batch_size",
    r"C\+\+ compile|working triton installation": "machine.compile needs g++, Python's headers and, on a GPU, Triton",
    "Connection closed by peer|Connection reset by peer": "another process of this training run has ended",
    "create a primitive": "this processor does not support bfloat16 here, set precision: float32",
}


@contextmanager
def report_errors(program: str) -> Iterator[None]:
    """End the process with one clear message on a `UserError`, an `OSError`, ctrl-C or a limit of the machine.

    Bugs keep their traceback.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # A background process ignores ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except (UserError, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(os.EX_TEMPFAIL if isinstance(error, TemporaryError) else 1)
    except RuntimeError as error:
        for pattern, reason in MACHINE.items():
            if re.search(pattern, str(error)):
                print(f"{program}: error: {reason}: {error}", file=sys.stderr)
                sys.exit(1)
        raise
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
