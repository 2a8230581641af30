"""The command line: it parses, calls and prints. A verb is a file in `onnx_gpt.commands`.

Results go to stdout (a table for people, one JSON document with ``--json``), talk to stderr.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import cyclopts
from rich.console import Console

from exporter.errors import Exit, OnnxGptError
from onnx_gpt._version import __version__
from onnx_gpt.commands import register

HELP = """From a trained GPT decoder to a fused, quantized and proven ONNX bundle.

SOURCE is a Hugging Face directory, a .gguf, a nanoGPT .pt, anyone's .onnx file,
hf:org/name, module:package.module:factory, sample:tiny or sample:smollm2."""

EXAMPLES = """Examples:

    onnx-gpt optimize sample:smollm2 -o smollm2 --quantize int8
    onnx-gpt run smollm2 --chat --prompt "What is a graph?"
    onnx-gpt bench smollm2

"""
STATUSES = """Exit statuses: 0 done · 2 usage · 3 unsupported · 4 input rejected ·
5 parity failed, nothing published · 6 verification failed · 7 out of disk,
memory or budget · 8 environment · 9 network · 10 output exists"""


def app(arguments: Sequence[str] = (), console: Console | None = None) -> cyclopts.App:
    """The command line with its verbs; what it will be asked says which of them are needed."""
    root = cyclopts.App(
        name="onnx-gpt",
        help=HELP,
        help_epilogue=EXAMPLES + STATUSES,
        help_format="markdown",  # which joins the lines of a docstring's paragraph
        version=f"onnx-gpt {__version__}",
        error_console=Console(stderr=True),
        console=console,
        suppress_keyboard_interrupt=False,
        default_parameter=cyclopts.Parameter(negative_iterable=()),
    )
    register(root, arguments, help_epilogue=STATUSES)
    return root


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    _prepare_streams()
    received: list[int] = []

    def terminated(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise SystemExit(128 + number)  # unwinds, so that half-written output is removed

    signal.signal(signal.SIGTERM, terminated)
    for name in ("SIGHUP", "SIGQUIT"):  # nohup has the first ignored, and Windows has neither
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_DFL:
            signal.signal(getattr(signal, name), terminated)
    try:
        status = _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt as stopped:
        _say_stopped("interrupted", stopped)
        # An interrupt that went through source made as it runs (dataclasses', in an import) is noted as unhandled, and
        # Python would end by the signal. It forgets that when it runs other source.
        exec("")
        status = 130
    except SystemExit as stopped:
        if received:
            _say_stopped("terminated", stopped)
            status = 128 + received[0]
        elif isinstance(stopped.__context__, BrokenPipeError):  # what rich makes of it
            status = 0
        else:
            raise
    except BrokenPipeError:  # the reader of our stdout has gone; that is its right
        status = 0
    except Exception:  # the last resort: a bug of ours, said to be one
        if not received:
            traceback.print_exc()
            print(
                "error [internal] this is a bug in onnx-gpt; please report the lines above", file=sys.stderr
            )
        status = Exit.INTERNAL
    _drop_unwritable()
    # Raised inside a native call, SystemExit may come back as any other error.
    sys.exit(128 + received[0] if received else status)


class _Talk(io.TextIOWrapper):
    """Standard error on a disk that may be full: what cannot be said there ends no job, and changes no status."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def _prepare_streams() -> None:
    """Both streams take any text, in UTF-8 whatever the locale is; what a shell has closed leads nowhere."""
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115 (until the end)
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr is sys.__stderr__:
        sys.stderr = _Talk(sys.stderr.buffer, line_buffering=True)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (until the end)
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def _say_stopped(how: str, stopped: BaseException) -> None:
    kept = getattr(stopped, "__notes__", ())  # what a folder has been left for
    with contextlib.suppress(OSError):  # a terminal that has gone
        print("; ".join([f"\n{how}", "nothing was published", *kept]), file=sys.stderr)


def _drop_unwritable() -> None:
    """Forget what stdout does not take: Python would try again as it ends, and exit with a status of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
    try:
        result = app(arguments)(arguments, exit_on_error=False, result_action="return_value")
        sys.stdout.flush()  # here, where a full disk has an error of its own
        return result if isinstance(result, int) else 0
    except cyclopts.CycloptsError:
        return Exit.USAGE  # cyclopts has printed what was wrong
    except OnnxGptError as error:
        print(f"error {error}", file=sys.stderr)
        return error.exit
    except MemoryError:
        print(
            "error [memory] out of memory\n  → close other programs, or use a machine with more",
            file=sys.stderr,
        )
        return Exit.RESOURCES
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            print(f"error [disk-full] {error}\n  → free disk space, or write elsewhere", file=sys.stderr)
            return Exit.RESOURCES
        print(f"error [file] {error}\n  → check that the file exists and can be read", file=sys.stderr)
        return Exit.ENVIRONMENT
