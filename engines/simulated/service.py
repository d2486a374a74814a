"""FaultService: switches the faults of a simulated engine."""

from __future__ import annotations

import math
from typing import Any, Final

from common.logs import get_logger
from engines.simulated.engine import SimulatedEngine
from engines.simulated.faults import Faults
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.errors import InvalidArgumentError

log = get_logger(__name__)

SERVICE: Final = engine_pb2.DESCRIPTOR.services_by_name["FaultService"].full_name


class FaultServicer(engine_pb2_grpc.FaultServiceServicer):
    """Translates between gRPC and the engine's faults.

    Args:
        engine: The engine to break.
    """

    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine = engine

    async def SetFaults(self, request: engine_pb2.SetFaultsRequest, context: Any) -> engine_pb2.SetFaultsResponse:
        """See FaultService."""
        wire = request.faults
        if wire.freeze_after_tokens < 0:
            raise InvalidArgumentError("freeze_after_tokens must be 0 or more", field="faults.freeze_after_tokens")
        if not math.isfinite(wire.slow_factor) or wire.slow_factor < 0:
            raise InvalidArgumentError("slow_factor must be a number, 0 or more", field="faults.slow_factor")
        faults = Faults(
            hang=wire.hang,
            freeze_after_tokens=wire.freeze_after_tokens,
            slow_factor=wire.slow_factor or 1.0,
            crash_marker=wire.crash_marker,
            garbage=wire.garbage,
            out_of_memory=wire.out_of_memory,
        )
        self._engine.set_faults(faults)
        log.warning("faults set", hang=faults.hang, freeze=faults.freeze_after_tokens, slow=faults.slow_factor)
        return engine_pb2.SetFaultsResponse(faults=wire)
