"""`python -m trainer RUN_DIR/config.yaml`: one rank of a training, also under torchrun, or alone."""

from trainer.stop import signals

signals.install()  # before any import that takes time: from here on a stop signal is remembered

import os  # noqa: E402

# torch warns at every start about the choice that trainer/engines/ddp/engine.py makes on purpose.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import sys  # noqa: E402
import traceback  # noqa: E402
from contextlib import suppress  # noqa: E402
from pathlib import Path  # noqa: E402

from settings import ConfigError  # noqa: E402
from trainer import exits  # noqa: E402


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print("outlast: usage: python -m trainer RUN_DIR/config.yaml", file=sys.stderr)
        return exits.CONFIG
    try:
        from trainer.run import run

        return run(Path(argv[0]))
    except ConfigError as error:
        print(f"outlast: {error}", file=sys.stderr)
        return exits.CONFIG
    except Exception:
        traceback.print_exc()
        return exits.CRASHED


if __name__ == "__main__":
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a full disk must not change the code
            stream.flush()
    # No exit handlers: after a peer's crash they would wait for it in a collective.
    os._exit(code)
