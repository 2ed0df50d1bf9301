"""What a local run shows: lines of JSON for programs, a line of progress for people."""

from __future__ import annotations

import json
import re
import time
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

from modelscaling.advice import find_overfitting
from modelscaling.api.conditions import Reason
from modelscaling.quantity import format_quantity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from modelscaling.local_run import LocalRun
    from modelscaling.protocol import Failure, Progress
    from modelscaling_trainer.rejected_growth import RejectedGrowth

_LINE_EVERY_S = 5.0
"""Between two lines of progress where they are not on a terminal."""
_CLEAR_LINE = "\r\x1b[K"
_CHECKPOINT_NAME = re.compile(r"step-(\d+)")


class LocalReport:
    """Writes JSON to `output` if the run asks for it, and all that is for people to `terminal`."""

    def __init__(
        self,
        run: LocalRun,
        *,
        output: TextIO,
        terminal: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._output = output
        self._terminal = terminal
        self._clock = clock
        self._is_live = terminal.isatty() and not run.is_json
        self._last_line_at = -_LINE_EVERY_S
        self._progress: Progress | None = None
        self._overfits_since: int | None = None
        """The step of the best validation, where the run overfits."""
        self._rejected: RejectedGrowth | None = None
        """The growth that was taken back, where no other has come since."""
        if not run.is_json:
            self._say(self._introduction())

    def on_progress(self, progress: Progress) -> None:
        """Show a step."""
        self._progress = progress
        self._warn_of_overfitting(progress)
        if self._run.is_json:
            self._write(self._step_fields(progress))
        elif self._is_live:
            self._terminal.write(_CLEAR_LINE + self._line(progress))
            self._terminal.flush()
        elif self._clock() - self._last_line_at >= _LINE_EVERY_S:
            self._last_line_at = self._clock()
            self._say(self._line(progress))

    def growing(self, run: LocalRun) -> None:
        """Say what the run trains from the next step on."""
        self._run = run
        self._rejected = None
        self._end_line()
        self._say(f"growing to {_describe_model(run)}")

    def growth_rejected(self, run: LocalRun, rejected: RejectedGrowth) -> None:
        """Say what growth was taken back, and what the run goes on with."""
        self._run = run
        self._rejected = rejected
        self._end_line()
        self._say(f"{self._why_rejected(rejected)}; going on with {_describe_model(run)}")

    def interrupting(self) -> None:
        """Say what the first interrupt does."""
        saves = "saving" if self._run.output else "stopping"
        self._end_line()
        self._say(f"{saves}; interrupt again to end at once, without a checkpoint")

    def interrupted(self) -> None:
        """Say where an interrupted run was saved."""
        self._end_line()
        checkpoint = self._checkpoint()
        self._say(
            f"interrupted; the run is saved in {checkpoint}, and the same command goes on from it"
            if checkpoint
            else "interrupted; nothing was saved"
        )

    def failed(self, failure: Failure | None) -> None:
        """Say why the run failed."""
        self._end_line()
        reason = f"{failure.reason}: {failure.message}" if failure else "no reason was given"
        self._say(f"error: the run failed: {reason}")

    def done(self) -> None:
        """Show the end."""
        fields = {
            "done": True,
            "step": self._step(),
            "parameters": self._run.configuration.model.parameters(),
            "mesh": str(self._run.mesh),
            "checkpoint": self._checkpoint(),
        }
        if self._run.configuration.training.early_stopping:
            fields |= self._early_stopping_fields()
        if self._rejected:
            fields["rejected_growth"] = self._rejection_fields(self._rejected)
        if self._run.is_json:
            self._write(fields)
            return
        if self._progress and not self._is_live:
            self._say(self._line(self._progress))
        self._end_line()
        saved = f"saved in {fields['checkpoint']}" if fields["checkpoint"] else "nothing was saved"
        self._say(f"done at step {fields['step']}; {saved}")
        if self._progress and self._progress.is_stopped_early:
            self._say(self._why_early(self._progress))
        if self._rejected:
            self._say(self._why_rejected(self._rejected))

    def _warn_of_overfitting(self, progress: Progress) -> None:
        """Say it once for each best validation that was left behind."""
        overfitting = find_overfitting(progress.validations)
        since = overfitting.best.step if overfitting else None
        if overfitting and since != self._overfits_since:
            self._end_line()
            self._say(f"warning: overfitting: {overfitting.message}")
        self._overfits_since = since

    def _early_stopping_fields(self) -> dict[str, object]:
        """Return what the last object says of a run that may stop early."""
        best = self._progress.best_checkpoint if self._progress else None
        is_early = self._progress is not None and self._progress.is_stopped_early
        return {
            "reason": Reason.EARLY_STOPPED if is_early else Reason.COMPLETE,
            "best_checkpoint": self._checkpoint_steps().get(best.step) if best else None,
        }

    def _why_early(self, progress: Progress) -> str:
        best, path = progress.validations.best, self._early_stopping_fields()["best_checkpoint"]
        assert best is not None, "no patience is lost before the first validation"
        where = f"saved in {path}" if path else "not saved"
        return (
            f"stopped early: {progress.validations.without_improvement} validations without "
            f"improvement; the best is step {best.step} with a validation loss of "
            f"{best.loss:.4f}, {where}"
        )

    def _rejection_fields(self, rejected: RejectedGrowth) -> dict[str, object]:
        """Return what the last object says of the growth that was taken back."""
        return {
            "parameters": rejected.model.parameters(),
            **rejected.rejection.model_dump(exclude={"model"}),
        }

    def _why_rejected(self, rejected: RejectedGrowth) -> str:
        parameters = format_quantity(rejected.model.parameters())
        return f"growing to {parameters} parameters was taken back: {rejected.rejection.message}"

    def _introduction(self) -> str:
        run = self._run
        where = (
            f"saving to {run.output}"
            if run.output
            else "nothing is saved (give --output DIR to save)"
        )
        return (
            f"{run.name}: {format_quantity(run.configuration.model.parameters())} parameters, "
            f"{run.configuration.training.total_steps} steps, mesh {run.mesh}; {where}"
        )

    def _step_fields(self, progress: Progress) -> dict[str, float | str | None]:
        fields: dict[str, float | str | None] = {
            "step": progress.step,
            "loss": progress.loss,
            "tokens": progress.tokens,
            "sample_digest": progress.sample_digest,
            "step_seconds": progress.step_seconds,
            "tokens_per_second": progress.tokens_per_second,
        }
        # The progress repeats the last validation loss until the next is measured.
        every = self._run.configuration.training.validate_every_steps
        is_measured = every and (progress.step % every == 0 or progress.step == self._run.last_step)
        if is_measured and progress.validation_loss is not None:
            fields["validation_loss"] = progress.validation_loss
        return fields

    def _line(self, progress: Progress) -> str:
        parts = [f"step {progress.step}/{self._run.last_step}"]
        if progress.loss is not None:
            parts.append(f"loss {progress.loss:.4f}")
        if progress.validation_loss is not None:
            parts.append(f"validation loss {progress.validation_loss:.4f}")
        if progress.tokens_per_second:
            tokens = (self._run.last_step - progress.step) * self._run.configuration.tokens_per_step
            left = timedelta(seconds=round(tokens / progress.tokens_per_second))
            parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
            parts.append(f"{left} left")
        return "  ".join(parts)

    def _step(self) -> int:
        """Return the step that the run is at, also where it was already done before."""
        if self._progress:
            return self._progress.step
        return max(self._checkpoint_steps(), default=0)

    def _checkpoint(self) -> str | None:
        """Return the path of the newest checkpoint."""
        steps = self._checkpoint_steps()
        return str(steps[max(steps)]) if steps else None

    def _checkpoint_steps(self) -> dict[int, str]:
        output = self._run.output
        if output is None or not output.is_dir():
            return {}
        matches = ((path, _CHECKPOINT_NAME.fullmatch(path.name)) for path in output.iterdir())
        return {int(match[1]): str(path) for path, match in matches if match}

    def _write(self, fields: Mapping[str, object]) -> None:
        self._output.write(json.dumps(fields) + "\n")
        self._output.flush()

    def _say(self, line: str) -> None:
        self._terminal.write(line + "\n")
        self._terminal.flush()

    def _end_line(self) -> None:
        if self._is_live and self._progress:
            self._terminal.write("\n")


def _describe_model(run: LocalRun) -> str:
    return f"{format_quantity(run.configuration.model.parameters())} parameters, mesh {run.mesh}"
