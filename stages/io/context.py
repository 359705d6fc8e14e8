"""What a stage runs in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from stages.base import Config, Resources, Summary
from stages.io.output import Output

C_contra = TypeVar("C_contra", bound=Config, contravariant=True)


@dataclass(frozen=True)
class StageContext:
    """What a stage gets in addition to its configuration and inputs.

    ``output`` becomes the artifact when the stage returns. ``progress(done, total, note)`` may be called from any
    thread.
    """

    output: Output
    resources: Resources
    progress: Callable[[int, int, str], None]


class StageFn(Protocol[C_contra]):
    """The function behind a stage: makes the parts of ``context.output`` and returns a summary."""

    def __call__(self, config: C_contra, inputs: Mapping[str, Any], context: StageContext, /) -> Summary: ...
