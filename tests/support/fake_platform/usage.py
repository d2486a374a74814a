"""UsageService in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fairlead.admin.v1 import usage_pb2, usage_pb2_grpc
from fairlead.errors import FairleadError
from tests.support.fake_platform.router import abort

if TYPE_CHECKING:
    from tests.support.fake_platform.control import FakeControlPlane


class FakeUsage(usage_pb2_grpc.UsageServiceServicer):
    """Exports the rows it was given, two in a message."""

    def __init__(self, control: FakeControlPlane) -> None:
        self._control = control
        self.rows: list[usage_pb2.UsageRow] = []
        self.complete_until_s = 0
        self.requests: list[usage_pb2.ExportUsageRequest] = []
        self.failure: FairleadError | None = None
        """The export ends with this after its first message."""

    def add(self, tenant_id: str, model_id: str, hour_s: int, requests: int = 1) -> None:
        """Some usage: so many requests of the same size."""
        row = usage_pb2.UsageRow(
            tenant_id=tenant_id,
            model_id=model_id,
            requests=requests,
            input_tokens=100 * requests,
            cached_input_tokens=20 * requests,
            output_tokens=50 * requests,
            prefill_milli_mu=1_001 * requests,
            decode_milli_mu=2_002 * requests,
        )
        row.hour.seconds = hour_s
        self.rows.append(row)

    async def ExportUsage(self, request: Any, context: Any) -> AsyncIterator[usage_pb2.ExportUsageResponse]:
        await self._control.check(context)
        self.requests.append(request)
        chosen = [
            row
            for row in self.rows
            if request.tenant_id in ("", row.tenant_id) and request.model_id in ("", row.model_id)
        ]
        first = usage_pb2.ExportUsageResponse(rows=chosen[:2])
        first.complete_until_time.seconds = self.complete_until_s
        yield first
        if self.failure is not None:
            await abort(context, self.failure)
        for start in range(2, len(chosen), 2):
            yield usage_pb2.ExportUsageResponse(rows=chosen[start : start + 2])
