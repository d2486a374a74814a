"""The Store on a real etcd: aetcd's generated stubs over a channel of our own.

aetcd's high-level client is not used: it multiplexes all watches over one stream that a single error ends, cannot tell
a compacted watch apart reliably and knows no secure channel (docs/decisions/0001-etcd-client.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio
from aetcd import rpc

from common.store import Change, CompactedError, Entry, Expect, Listing
from fairlead.errors import Reason, UnavailableError

T = TypeVar("T")

_EOF = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the type stubs

# etcd refuses client pings more often than every 5 s (--grpc-keepalive-min-time); a frozen server is noticed after
# time + timeout on idle streams, and after call_timeout_s by every call. What is called the least time between attempts
# to connect is also how long the first one may take; a connection that is refused is tried again after the initial one.
_CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.min_reconnect_backoff_ms", 2_000),
)


def _prefix_end(prefix: bytes) -> bytes:
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _entry(kv: Any) -> Entry:
    return Entry(kv.key.decode(), kv.value, kv.mod_revision, kv.create_revision, kv.lease)


def _compare(expect: Expect) -> Any:
    if expect.create_revision is not None:
        return rpc.Compare(
            key=expect.key.encode(),
            target=rpc.Compare.CREATE,
            result=rpc.Compare.EQUAL,
            create_revision=expect.create_revision,
        )
    return rpc.Compare(
        key=expect.key.encode(), target=rpc.Compare.MOD, result=rpc.Compare.EQUAL, mod_revision=expect.revision
    )


class EtcdStore:
    """An etcd server or cluster.

    Args:
        endpoint: host:port of etcd's client listener; several, separated by commas, are tried in turn by gRPC.
        call_timeout_s: Longest wait for one call.
    """

    def __init__(self, endpoint: str, *, call_timeout_s: float = 3.0) -> None:
        target = endpoint if "," not in endpoint else "ipv4:" + endpoint
        self._endpoint = endpoint
        self._call_timeout_s = call_timeout_s
        self._channel = grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
        self._kv = rpc.KVStub(self._channel)
        self._lease = rpc.LeaseStub(self._channel)
        self._watch = rpc.WatchStub(self._channel)

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            raise self._unavailable(failure) from failure

    def _unavailable(self, failure: grpc.aio.AioRpcError) -> UnavailableError:
        return UnavailableError(
            f"etcd at {self._endpoint} does not answer ({failure.code().name}: {failure.details()}); "
            "check that it runs and that etcd_endpoint is right",
            reason=Reason.STORE_UNAVAILABLE,
            retry_after_s=1.0,
        )

    async def get(self, key: str) -> Entry | None:
        """See Store."""
        response = await self._call(self._kv.Range(rpc.RangeRequest(key=key.encode()), timeout=self._call_timeout_s))
        return _entry(response.kvs[0]) if response.kvs else None

    async def list(self, prefix: str) -> Listing:
        """See Store."""
        start = prefix.encode()
        request = rpc.RangeRequest(key=start, range_end=_prefix_end(start))
        response = await self._call(self._kv.Range(request, timeout=self._call_timeout_s))
        return Listing(response.header.revision, tuple(_entry(kv) for kv in response.kvs))

    async def list_keys(self, start: str, end: str, limit: int) -> tuple[str, ...]:
        """See Store."""
        request = rpc.RangeRequest(key=start.encode(), range_end=end.encode(), limit=limit, keys_only=True)
        response = await self._call(self._kv.Range(request, timeout=self._call_timeout_s))
        return tuple(kv.key.decode() for kv in response.kvs)

    async def put(self, key: str, value: bytes, *, lease_id: int = 0) -> int:
        """See Store."""
        request = rpc.PutRequest(key=key.encode(), value=value, lease=lease_id)
        response = await self._call(self._kv.Put(request, timeout=self._call_timeout_s))
        return int(response.header.revision)

    async def delete(self, key: str) -> bool:
        """See Store."""
        request = rpc.DeleteRangeRequest(key=key.encode())
        response = await self._call(self._kv.DeleteRange(request, timeout=self._call_timeout_s))
        return bool(response.deleted)

    async def commit(
        self,
        expects: Sequence[Expect],
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        *,
        lease_id: int = 0,
    ) -> int | None:
        """See Store."""
        operations = [
            rpc.RequestOp(request_put=rpc.PutRequest(key=key.encode(), value=value, lease=lease_id))
            for key, value in puts.items()
        ]
        operations += [rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key.encode())) for key in deletes]
        request = rpc.TxnRequest(compare=[_compare(expect) for expect in expects], success=operations)
        response = await self._call(self._kv.Txn(request, timeout=self._call_timeout_s))
        return int(response.header.revision) if response.succeeded else None

    async def watch(self, prefix: str, *, after_revision: int) -> AsyncIterator[tuple[Change, ...]]:
        """See Store."""
        start = prefix.encode()
        create = rpc.WatchCreateRequest(key=start, range_end=_prefix_end(start), start_revision=after_revision + 1)
        call = self._watch.Watch()
        try:
            await call.write(rpc.WatchRequest(create_request=create))
            while True:
                response = await call.read()
                if response is _EOF:
                    raise UnavailableError("etcd ended a watch", reason=Reason.STORE_UNAVAILABLE)
                if response.compact_revision:
                    raise CompactedError(f"{prefix} is compacted up to revision {response.compact_revision}")
                if response.canceled:
                    raise UnavailableError(
                        f"etcd cancelled a watch: {response.cancel_reason}", reason=Reason.STORE_UNAVAILABLE
                    )
                if response.events:
                    yield tuple(
                        Change(
                            event.kv.key.decode(),
                            None if event.type == event.DELETE else event.kv.value,
                            event.kv.mod_revision,
                        )
                        for event in response.events
                    )
        except grpc.aio.AioRpcError as failure:
            raise self._unavailable(failure) from failure
        finally:
            call.cancel()

    async def grant_lease(self, ttl_s: int) -> int:
        """See Store."""
        response = await self._call(
            self._lease.LeaseGrant(rpc.LeaseGrantRequest(TTL=ttl_s), timeout=self._call_timeout_s)
        )
        return int(response.ID)

    async def keep_lease_alive(self, lease_id: int) -> bool:
        """See Store."""
        call = self._lease.LeaseKeepAlive(timeout=self._call_timeout_s)
        try:
            await call.write(rpc.LeaseKeepAliveRequest(ID=lease_id))
            response = await call.read()
            return response is not _EOF and response.TTL > 0
        except grpc.aio.AioRpcError as failure:
            raise self._unavailable(failure) from failure
        finally:
            call.cancel()

    async def revoke_lease(self, lease_id: int) -> None:
        """See Store."""
        with contextlib.suppress(UnavailableError):  # an unreachable lease ends by itself
            await self._call(self._lease.LeaseRevoke(rpc.LeaseRevokeRequest(ID=lease_id), timeout=self._call_timeout_s))

    async def close(self) -> None:
        """See Store."""
        await self._channel.close(None)
