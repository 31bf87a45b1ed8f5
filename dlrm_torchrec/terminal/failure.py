"""How a program ends that cannot go on: with one sentence for a mistake of the user, with a call stack for a bug."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from dlrm_torchrec.terminal import stopped
from dlrm_torchrec.terminal.quiet import quiet_libraries
from dlrm_torchrec.terminal.ranks import Failure, Place, place
from dlrm_torchrec.terminal.shown import shown

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

STARTED = time.monotonic()  # of this process, as recipes import their command line first
MISTAKE, BAD_ARGUMENTS, INTERRUPTED = 1, 2, 130
LIBRARY = Path(__file__).resolve().parents[1]
NEIGHBOURS_S = 2.0  # for which a rank that fails waits whether its neighbours fail alike
CAUSE_S = 5.0  # for which a rank that lost another one waits for the sentence of that one
TORCHRUN_S = 20.0  # after which torchrun has ended the other ranks
_OURS = re.compile(r"\bmust\b.*: (got|found)\b", re.DOTALL)  # "<thing> must <rule>: got <value>; <what to do>"
_UNLOADABLE = re.compile(
    r"cannot open shared object file|undefined symbol|No module named '(torch|fbgemm_gpu|torchrec)'"
)
_LOST = re.compile(
    r"Connection (closed by peer|reset by peer|refused|was likely closed)|Broken pipe|Socket closed|"
    r"remote process exited"
)


def run(main: Callable[Parameters, Result], *arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
    """What ``main`` returns; errors end this process, told by one rank of a host as people can use them.

    A mistake of the user is a sentence on standard error and exit code 1; ``--debug`` adds the call stack. Any other
    error shows its call stack and says that it is a bug. torchrun finds the same in the rank's error file. A run that a
    signal stopped ends with that signal's exit code.
    """
    return run_with_code(MISTAKE, main, *arguments, **options)


def run_with_code(
    code: int, main: Callable[Parameters, Result], *arguments: Parameters.args, **options: Parameters.kwargs
) -> Result:
    """As ``run``, with another exit code for a mistake of the user."""
    quiet_libraries()
    if not faulthandler.is_enabled():
        faulthandler.enable()  # a fault of native code shows where it was
    try:
        result = main(*arguments, **options)
    except (KeyboardInterrupt, Exception) as error:
        failure = failure_of(error, place().rank)
        tell_failure(failure, place())
        sys.exit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else MISTAKE if failure.stack else code)
    if stopped.exit_code():
        sys.exit(stopped.exit_code())
    return result


def failure_of(error: BaseException, rank: int) -> Failure:
    """What to tell of ``error``: a sentence alone if it is the user's to mend, or if another rank was lost."""
    if isinstance(error, KeyboardInterrupt):
        return Failure(rank, "interrupted")
    stack = "".join(traceback.format_exception(error))
    if isinstance(error, RuntimeError) and _LOST.search(str(error)):  # not OSError: a pipe of the user's may break
        advice = "look at what the other ranks printed, and run the same command again to resume"
        reason = str(error).strip().splitlines()[0]
        return Failure(rank, f"the connection to another rank must hold: got {reason}; {advice}", lost=True)
    if unloaded := _unloaded(error):
        advice = "run `dlrm-recipes doctor`, which says what is broken and how to mend it"
        sentence = f"the installed packages must be importable: got {unloaded}; {advice}"
        return Failure(rank, sentence, stack if wants_stacks() else "")
    if is_mistake(error):
        return Failure(rank, str(error), stack if wants_stacks() else "")
    return Failure(rank, f"{type(error).__name__}: {error}\n{_whose(error)}", stack)


def _unloaded(error: BaseException | None) -> str | None:
    """What could not be imported, by ``error`` or by its cause, since torch says only which file it could not load."""
    while error is not None:
        if isinstance(error, (ImportError, OSError)) and _UNLOADABLE.search(str(error)):
            return str(error)
        error = error.__cause__
    return None


def is_mistake(error: BaseException) -> bool:
    """Whether the user can mend it: the system refused, or this library did, in its own form."""
    ours = type(error).__module__.startswith("dlrm_torchrec.") or _OURS.search(str(error))
    return isinstance(error, OSError) or (isinstance(error, ValueError) and bool(ours))


def _whose(error: BaseException) -> str:
    """Where to look for a bug: in a file of the user, such as a copy of a recipe, or in what is installed."""
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    own = [(path, line) for path, line in places if _is_the_users(Path(path).resolve())]
    if own:
        path, line = own[-1]
        return f"This is a bug in {path}, line {line}, or in what it calls."
    return "This is a bug of dlrm_torchrec or of a library, not a mistake of yours."


def _is_the_users(path: Path) -> bool:
    """Whether a file is neither Python's nor another package's, nor one of this library and its scripts."""
    folders = [LIBRARY, (LIBRARY / "recipes").resolve(), (LIBRARY / "data").resolve(), Path(os.__file__).parent]
    return path.exists() and "site-packages" not in path.parts and not any(map(path.is_relative_to, folders))


def wants_stacks() -> bool:
    """Whether the command line asks for call stacks; it is read before there is a config, which may be the mistake."""
    return any(word in ("--debug", "--log.debug") for word in sys.argv[1:])


def tell_failure(failure: Failure, where: Place) -> None:
    """Print a failure once per host, and record it for torchrun.

    A rank that lost another one leaves the word to that one. torchrun's SIGTERM, which follows the first failure of
    any rank, must not come in between.
    """
    if where.error_file is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if where.error_file is None or where.local_size == 1:
        where.record(failure)
        _print(failure, "")
        return
    if failure.lost:
        causes = [each for each in where.wait_for_failures(CAUSE_S, all_ranks=False) if not each.lost]
        where.record(failure)
        if not causes and where.claims("lost"):
            _print(failure, f" of rank {failure.rank}")
        return
    where.record(failure)
    found = where.wait_for_failures(NEIGHBOURS_S, all_ranks=True)
    alike = [each.rank for each in found if each.sentence == failure.sentence]
    if where.claims(failure.sentence):
        several = f" of ranks {', '.join(map(str, alike))}" if len(alike) > 1 else f" of rank {failure.rank}"
        _print(failure, "" if len(alike) == where.local_size else several)


def _tell_uncaught(_kind: type[BaseException], error: BaseException, _stack: TracebackType | None) -> None:
    tell_failure(failure_of(error, place().rank), place())


def _print(failure: Failure, who: str) -> None:
    print(shown(f"{failure.stack}error{who}: {failure.sentence}"), file=sys.stderr, flush=True)


@contextmanager
def one_voice() -> Iterator[None]:
    """Inside ``with``, a command line is read: a mistake in it ends this process with its sentence and exit code 2.

    The first rank of a host alone is heard, since all read the same and say the same of it. The others wait for it
    when they are refused, because torchrun ends all ranks as soon as one has ended. What goes wrong after ``with`` and
    before ``run``, as when torch is imported, is told as ``run`` tells it.
    """
    where = place()
    with ExitStack() as silence:
        if not where.is_first:
            silence.enter_context(redirect_stdout(StringIO()))
            silence.enter_context(redirect_stderr(StringIO()))
        try:
            yield
            quiet_libraries()
            sys.excepthook = _tell_uncaught
            return
        except ValueError as error:
            sentence = str(error)
            print(shown(f"error: {error}"), file=sys.stderr)
        except SystemExit as end:  # of tyro, which has said why
            if not end.code:
                raise
            sentence = "options must be as --help lists them: got others, which the lines above name"
    if where.is_first:
        where.record(Failure(where.rank, sentence))
    else:
        time.sleep(TORCHRUN_S)
    sys.exit(BAD_ARGUMENTS)
