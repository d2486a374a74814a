"""What a core says happened; the store dates it and keeps it as an event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fairlead.admin.v1 import calibration_pb2

INFO: Final = calibration_pb2.EVENT_SEVERITY_INFO
WARNING: Final = calibration_pb2.EVENT_SEVERITY_WARNING


@dataclass(frozen=True, slots=True)
class Happening:
    """Something an operator wants to know.

    Attributes:
        kind: Upper snake case: "PROFILE_DRIFT".
        severity: INFO or WARNING.
        model_id: The model it is about.
        message: One sentence, and what to do.
        facts: The numbers behind it.
    """

    kind: str
    severity: calibration_pb2.EventSeverity.ValueType
    model_id: str
    message: str
    facts: Mapping[str, str] = field(default_factory=dict)
