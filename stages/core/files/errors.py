"""What the user can mend, told in plain words instead of a traceback."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in the params, the data or the environment; the message says where, what, and what is allowed."""


class TemporaryError(UserError):
    """A failure that another try may mend, such as of the network: the process exits with EX_TEMPFAIL (sysexits.h)."""


def did_you_mean(name: str, allowed: list[str]) -> str:
    """`", did you mean 'convnet'?"`, or nothing where no allowed name comes near."""
    near = get_close_matches(name, allowed, n=1)
    return f", did you mean '{near[0]}'?" if near else ""


def redacted(text: str) -> str:
    """Without what the URLs in it may keep secret: user, password and query."""
    text = re.sub(r"://\S*@", "://***@", text)
    # up to a blank, without what may follow the URL in a sentence: a secret may hold any other sign
    return re.sub(r"(://[^\s?#]*)[?#]\S*?(['\"]?[)\]},.:;]*(?:\s|$))", r"\1?***\2", text)


MACHINE = {
    "out of memory|allocate memory": "out of memory, a smaller batch_size takes less",
    r"C\+\+ compile|working triton installation": "machine.compile needs g++, Python's headers and, on a GPU, Triton",
    "Connection closed by peer|Connection reset by peer": "another process of this training has ended",
    "create a primitive": "this processor cannot compute that in bfloat16, but with precision: float32",
}


@contextmanager
def reported(program: str) -> Iterator[None]:
    """End the process with one clear message on a `UserError`, an `OSError`, ctrl-C or what the machine cannot do.

    Bugs keep their traceback.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # It is ignored in a background process.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except (UserError, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(os.EX_TEMPFAIL if isinstance(error, TemporaryError) else 1)
    except RuntimeError as error:  # torch's, which has no type of its own for these
        for pattern, reason in MACHINE.items():
            if re.search(pattern, str(error)):
                print(f"{program}: error: {reason}: {error}", file=sys.stderr)
                sys.exit(1)
        raise
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
