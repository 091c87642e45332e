"""The command line: a reader of the other rooms, with no logic of its own.

A user's mistake is one sentence on stderr and exit code 2. Ctrl-C is exit code 130, and nothing finished is lost.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `orrery` command."""
    from orrery.cli.app import app
    from orrery.core.errors import OrreryError

    try:
        app()
    except OrreryError as error:
        print(f"orrery: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("orrery: interrupted; what was finished is kept", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(0) from None
