import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Want(_message.Message):
    __slots__ = ("tenant_id", "model_id", "wants_milli_mu_per_minute", "used_milli_mu_per_minute", "held_milli_mu")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    WANTS_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    USED_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    HELD_MILLI_MU_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    model_id: str
    wants_milli_mu_per_minute: int
    used_milli_mu_per_minute: int
    held_milli_mu: int
    def __init__(self, tenant_id: _Optional[str] = ..., model_id: _Optional[str] = ..., wants_milli_mu_per_minute: _Optional[int] = ..., used_milli_mu_per_minute: _Optional[int] = ..., held_milli_mu: _Optional[int] = ...) -> None: ...

class ReportWantsRequest(_message.Message):
    __slots__ = ("router_id", "incarnation_id", "report_number", "applied_epoch", "applied_table_number", "wants")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_ID_FIELD_NUMBER: _ClassVar[int]
    REPORT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    APPLIED_EPOCH_FIELD_NUMBER: _ClassVar[int]
    APPLIED_TABLE_NUMBER_FIELD_NUMBER: _ClassVar[int]
    WANTS_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    incarnation_id: str
    report_number: int
    applied_epoch: int
    applied_table_number: int
    wants: _containers.RepeatedCompositeFieldContainer[Want]
    def __init__(self, router_id: _Optional[str] = ..., incarnation_id: _Optional[str] = ..., report_number: _Optional[int] = ..., applied_epoch: _Optional[int] = ..., applied_table_number: _Optional[int] = ..., wants: _Optional[_Iterable[_Union[Want, _Mapping]]] = ...) -> None: ...

class ReportWantsResponse(_message.Message):
    __slots__ = ("leases", "refresh_interval")
    LEASES_FIELD_NUMBER: _ClassVar[int]
    REFRESH_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    leases: LeaseTable
    refresh_interval: _duration_pb2.Duration
    def __init__(self, leases: _Optional[_Union[LeaseTable, _Mapping]] = ..., refresh_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("tenant_id", "model_id", "rate_milli_mu_per_minute", "burst_milli_mu", "safe_rate_milli_mu_per_minute")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    RATE_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    BURST_MILLI_MU_FIELD_NUMBER: _ClassVar[int]
    SAFE_RATE_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    model_id: str
    rate_milli_mu_per_minute: int
    burst_milli_mu: int
    safe_rate_milli_mu_per_minute: int
    def __init__(self, tenant_id: _Optional[str] = ..., model_id: _Optional[str] = ..., rate_milli_mu_per_minute: _Optional[int] = ..., burst_milli_mu: _Optional[int] = ..., safe_rate_milli_mu_per_minute: _Optional[int] = ...) -> None: ...

class LeaseTable(_message.Message):
    __slots__ = ("router_id", "incarnation_id", "epoch", "table_number", "report_number", "lease_duration", "grant_time", "leases")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TABLE_NUMBER_FIELD_NUMBER: _ClassVar[int]
    REPORT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    LEASE_DURATION_FIELD_NUMBER: _ClassVar[int]
    GRANT_TIME_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    incarnation_id: str
    epoch: int
    table_number: int
    report_number: int
    lease_duration: _duration_pb2.Duration
    grant_time: _timestamp_pb2.Timestamp
    leases: _containers.RepeatedCompositeFieldContainer[Lease]
    def __init__(self, router_id: _Optional[str] = ..., incarnation_id: _Optional[str] = ..., epoch: _Optional[int] = ..., table_number: _Optional[int] = ..., report_number: _Optional[int] = ..., lease_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., grant_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., leases: _Optional[_Iterable[_Union[Lease, _Mapping]]] = ...) -> None: ...

class ListLeasesRequest(_message.Message):
    __slots__ = ("tenant_id", "model_id")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    model_id: str
    def __init__(self, tenant_id: _Optional[str] = ..., model_id: _Optional[str] = ...) -> None: ...

class ListLeasesResponse(_message.Message):
    __slots__ = ("tables",)
    TABLES_FIELD_NUMBER: _ClassVar[int]
    tables: _containers.RepeatedCompositeFieldContainer[LeaseTable]
    def __init__(self, tables: _Optional[_Iterable[_Union[LeaseTable, _Mapping]]] = ...) -> None: ...
