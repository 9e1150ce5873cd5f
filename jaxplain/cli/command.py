"""From the words of a command to its exit code."""

import io
import os
import sys

import cyclopts

from jaxplain.cli import about, explain, runs  # noqa: F401  # they add their commands to it
from jaxplain.cli.app import app
from jaxplain.types import JaxplainError


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def usage(error: cyclopts.CycloptsError) -> str:
    """A parser's complaint, with what to do."""
    command = " ".join(("jaxplain", *(error.command_chain or ())))
    if isinstance(error, cyclopts.UnusedCliTokensError):
        extra = " ".join(error.unused_tokens or ())
        return f"{extra!r} stands alone: give a file as --data FILE; see {command} --help"
    return f"{one_line(error).rstrip('.')}; see {command} --help"


def fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def call(arguments: list[str] | None) -> int:
    """Run a command; give its exit code."""
    try:
        code = app(
            arguments,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except cyclopts.CycloptsError as error:
        return fail(usage(error), 2)
    except JaxplainError as error:
        return fail(one_line(error), 1 if isinstance(error.__cause__, OSError) else 2)
    except KeyboardInterrupt:
        return fail("interrupted before anything was computed", 130)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("JAXPLAIN_TRACEBACK"):
            raise
        return fail(
            f"{type(error).__name__}: {one_line(error)} (JAXPLAIN_TRACEBACK=1 shows where; what a "
            "run had finished is kept, and the same command resumes it)",
            1,
        )


def main() -> None:
    """The `jaxplain` command."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without "·" is no reason to fail
        sys.stdout.reconfigure(errors="replace")
    sys.exit(call(None))
