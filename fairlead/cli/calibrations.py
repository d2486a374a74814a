"""Follows a calibration from the outside and shows it."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fairlead.admin.v1 import calibration_pb2
from fairlead.admin.v1.calibration_pb2 import Calibration
from fairlead.cli.connection import AdminConnection
from fairlead.cli.cost_profiles import amount, coefficient_rows, percent
from fairlead.cli.output import Output
from fairlead.errors import DeadlineExceededError, FairleadError, NotFoundError, UnavailableError

LOST_MAX_S = 60.0
"""How long a lost control plane is waited for: another instance takes over within seconds."""
_AGAIN_S = 0.5
_BAR_WIDTH = 40
_COLOURS = {"published": "green", "refused": "red", "failed": "red", "paused": "yellow"}
_UNDER_WAY = (calibration_pb2.CALIBRATION_STATE_PENDING, calibration_pb2.CALIBRATION_STATE_RUNNING)


def state_of(calibration: Calibration) -> str:
    """Its state as a lower-case word."""
    name = calibration_pb2.CalibrationState.Name(calibration.state)
    return name.removeprefix("CALIBRATION_STATE_").lower()


def state_text(word: Any) -> str:
    """Shows the state of a calibration in its colour."""
    return f"[{_COLOURS.get(word, 'cyan')}]{word}[/]"


def under_way(calibration: Calibration) -> bool:
    """Whether it goes on by itself."""
    return calibration.state in _UNDER_WAY


def find(connection: AdminConnection, target: str) -> Calibration:
    """Reads a calibration.

    Args:
        connection: To the control plane.
        target: Its id, or a model for the model's newest.

    Raises:
        NotFoundError: There is none.
    """
    # An id is "model@time", and no model's name holds an '@'.
    request = calibration_pb2.GetCalibrationRequest(
        calibration_id=target if "@" in target else "", model_id="" if "@" in target else target
    )
    try:
        return connection.call(connection.calibration.GetCalibration, request)
    except NotFoundError as error:
        raise NotFoundError(
            f"{error.message}; `fairlead calibrations list` shows those there are", reason=error.reason
        ) from None


class View(Protocol):
    """Shows a calibration while it goes on."""

    def show(self, calibration: Calibration) -> None:
        """Shows its present state."""
        ...

    def lost(self, problem: str) -> None:
        """Says that nothing is heard of it for now."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Silent:
    """Shows nothing: a program reads the result."""

    def show(self, calibration: Calibration) -> None:
        """Shows nothing."""

    def lost(self, problem: str) -> None:
        """Says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Lines(Silent):
    """A line for every step, where no terminal can redraw one.

    Args:
        say: Prints a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last = ""

    def show(self, calibration: Calibration) -> None:
        """Prints a line, unless it would be the last one again."""
        line = progress_line(calibration)
        if line != self._last:
            self._say(line)
            self._last = line

    def lost(self, problem: str) -> None:
        """Prints what is wrong."""
        if problem != self._last:
            self._say(problem)
            self._last = problem


class Screen:
    """A bar and the coefficients, redrawn in place.

    Args:
        console: The terminal.
        hint: What Ctrl-C does.
    """

    def __init__(self, console: Console, hint: str) -> None:
        self._hint = hint
        self._live = Live(Text("…"), console=console, auto_refresh=False, transient=True)
        self._shown: Calibration | None = None

    def show(self, calibration: Calibration) -> None:
        """Redraws."""
        self._shown = calibration
        self._live.update(screen(calibration, self._hint), refresh=True)

    def lost(self, problem: str) -> None:
        """Puts what is wrong above what was known last."""
        parts: list[Any] = [Text(problem, style="yellow")]
        if self._shown is not None:
            parts.append(screen(self._shown, self._hint))
        self._live.update(Group(*parts), refresh=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def view_for(output: Output, hint: str) -> View:
    """The view that suits who reads along: a terminal, a log, or a program.

    Args:
        output: Where results go.
        hint: What Ctrl-C does, for the terminal.
    """
    if not output.for_people:
        return Silent()
    return Screen(output.side, hint) if output.side.is_terminal else Lines(output.note)


def follow(connection: AdminConnection, start: Calibration, view: View) -> Calibration:
    """Shows a calibration until it has ended or is paused; a control plane that fails over is waited for.

    Args:
        connection: To the control plane.
        start: The calibration as last read; what a server that lags behind says about the time before is skipped.
        view: Where to show it.

    Returns:
        Its last state.

    Raises:
        FairleadError: Nothing was heard of it for a minute; it goes on all the same.
    """
    view.show(start)
    seen = start
    request = calibration_pb2.GetCalibrationRequest(calibration_id=start.calibration_id)
    heard_s = time.monotonic()
    while under_way(seen):
        try:
            for update in connection.stream(connection.calibration.WatchCalibration, request):
                heard_s = time.monotonic()
                if update.update_time.ToNanoseconds() < seen.update_time.ToNanoseconds():
                    continue
                seen = update
                view.show(seen)
                if not under_way(seen):
                    return seen
            problem: FairleadError = UnavailableError("the control plane ended the stream")
        except (UnavailableError, DeadlineExceededError) as error:
            problem = error
        if time.monotonic() - heard_s > LOST_MAX_S:
            raise UnavailableError(
                f"lost sight of calibration {start.calibration_id}, which goes on: {problem.message}; "
                f"`fairlead calibrations follow {start.calibration_id}` looks again",
                reason=problem.reason,
            )
        view.lost(f"waiting for the control plane: {problem.message}")
        time.sleep(_AGAIN_S)
    return seen


def progress_line(calibration: Calibration) -> str:
    """Where a calibration stands, in one line."""
    parts = [f"{state_of(calibration)} {calibration.progress:.0%}", times(calibration)]
    if calibration.detail:
        parts.append(calibration.detail)
    if calibration.HasField("profile"):
        coefficients = ", ".join(_brief(row) for row in coefficient_rows(calibration.profile))
        error = _hold_out(calibration)
        parts.append(coefficients + (f", hold-out error {error}" if error else ""))
    return "; ".join(parts)


def screen(calibration: Calibration, hint: str) -> Group:
    """Where a calibration stands, for a terminal that is redrawn.

    Args:
        calibration: The calibration.
        hint: Said below.
    """
    head = Text.assemble(("calibrating ", "bold"), (calibration.model_id, "bold"))
    if calibration.replica_id:
        head.append(f" on {calibration.replica_id} ({calibration.hardware}, {calibration.engine})", style="dim")
    bar = Table.grid(padding=(0, 1, 0, 0))
    bar.add_row(
        ProgressBar(total=1.0, completed=calibration.progress, width=_BAR_WIDTH),
        f"{calibration.progress:4.0%}",
    )
    spent = Text(times(calibration), style="dim")
    parts: list[Any] = [head, bar, spent, Text(calibration.detail or state_of(calibration))]
    if calibration.HasField("profile"):
        table = Table.grid(padding=(0, 2, 0, 0))
        for row in coefficient_rows(calibration.profile):
            table.add_row(
                f"[bold]{row['name']}[/]",
                amount(row["value"]),
                f"± {percent(row['uncertainty'])}" if row["uncertainty"] is not None else "",
                f"[dim]{row['meaning']}[/]",
            )
        parts.append(table)
        if error := _hold_out(calibration):
            parts.append(Text(f"hold-out error so far {error}"))
    parts.append(Text(hint, style="dim"))
    return Group(*parts)


def times(calibration: Calibration) -> str:
    """Engine time used and left, in words."""
    left = f", about {_minutes(calibration.engine_left_s)} left" if calibration.engine_left_s > 0 else ""
    return f"{_minutes(calibration.engine_s)} of engine time used{left}"


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d} min"


def _brief(row: dict[str, Any]) -> str:
    unsure = f" ± {percent(row['uncertainty'], 0)}" if row["uncertainty"] is not None else ""
    return f"{row['name']} {amount(row['value'])}{unsure}"


def _hold_out(calibration: Calibration) -> str:
    evidence = calibration.profile.evidence
    return percent(evidence.hold_out_error) if evidence.points else ""
