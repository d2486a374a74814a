import datetime

from fairlead.quota.v1 import quota_pb2 as _quota_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReportDemandRequest(_message.Message):
    __slots__ = ("epoch", "wants")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WANTS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    wants: _containers.RepeatedCompositeFieldContainer[_quota_pb2.Want]
    def __init__(self, epoch: _Optional[int] = ..., wants: _Optional[_Iterable[_Union[_quota_pb2.Want, _Mapping]]] = ...) -> None: ...

class ReportDemandResponse(_message.Message):
    __slots__ = ("refresh_interval",)
    REFRESH_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    refresh_interval: _duration_pb2.Duration
    def __init__(self, refresh_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Quota(_message.Message):
    __slots__ = ("tenant_id", "model_id", "reserved_milli_mu_per_minute", "guaranteed_milli_mu_per_minute", "granted_milli_mu_per_minute", "burst_ceiling_milli_mu_per_minute", "wants_milli_mu_per_minute", "used_milli_mu_per_minute")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    RESERVED_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    GUARANTEED_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    GRANTED_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    BURST_CEILING_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    WANTS_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    USED_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    model_id: str
    reserved_milli_mu_per_minute: int
    guaranteed_milli_mu_per_minute: int
    granted_milli_mu_per_minute: int
    burst_ceiling_milli_mu_per_minute: int
    wants_milli_mu_per_minute: int
    used_milli_mu_per_minute: int
    def __init__(self, tenant_id: _Optional[str] = ..., model_id: _Optional[str] = ..., reserved_milli_mu_per_minute: _Optional[int] = ..., guaranteed_milli_mu_per_minute: _Optional[int] = ..., granted_milli_mu_per_minute: _Optional[int] = ..., burst_ceiling_milli_mu_per_minute: _Optional[int] = ..., wants_milli_mu_per_minute: _Optional[int] = ..., used_milli_mu_per_minute: _Optional[int] = ...) -> None: ...

class QuotaTable(_message.Message):
    __slots__ = ("model_id", "shard", "epoch", "compute_time", "quotas")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_TIME_FIELD_NUMBER: _ClassVar[int]
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    shard: int
    epoch: int
    compute_time: _timestamp_pb2.Timestamp
    quotas: _containers.RepeatedCompositeFieldContainer[Quota]
    def __init__(self, model_id: _Optional[str] = ..., shard: _Optional[int] = ..., epoch: _Optional[int] = ..., compute_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., quotas: _Optional[_Iterable[_Union[Quota, _Mapping]]] = ...) -> None: ...

class ModelCapacity(_message.Message):
    __slots__ = ("model_id", "replicas_ready", "have_milli_mu_per_minute", "sold_milli_mu_per_minute", "used_milli_mu_per_minute", "shortfall_milli_mu_per_minute", "quotas")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_READY_FIELD_NUMBER: _ClassVar[int]
    HAVE_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    SOLD_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    USED_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    SHORTFALL_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    replicas_ready: int
    have_milli_mu_per_minute: int
    sold_milli_mu_per_minute: int
    used_milli_mu_per_minute: int
    shortfall_milli_mu_per_minute: int
    quotas: _containers.RepeatedCompositeFieldContainer[Quota]
    def __init__(self, model_id: _Optional[str] = ..., replicas_ready: _Optional[int] = ..., have_milli_mu_per_minute: _Optional[int] = ..., sold_milli_mu_per_minute: _Optional[int] = ..., used_milli_mu_per_minute: _Optional[int] = ..., shortfall_milli_mu_per_minute: _Optional[int] = ..., quotas: _Optional[_Iterable[_Union[Quota, _Mapping]]] = ...) -> None: ...

class CapacityTarget(_message.Message):
    __slots__ = ("model_id", "epoch", "target_milli_mu_per_minute", "floor_milli_mu_per_minute", "used_milli_mu_per_minute")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TARGET_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    FLOOR_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    USED_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    epoch: int
    target_milli_mu_per_minute: int
    floor_milli_mu_per_minute: int
    used_milli_mu_per_minute: int
    def __init__(self, model_id: _Optional[str] = ..., epoch: _Optional[int] = ..., target_milli_mu_per_minute: _Optional[int] = ..., floor_milli_mu_per_minute: _Optional[int] = ..., used_milli_mu_per_minute: _Optional[int] = ...) -> None: ...

class ListCapacityRequest(_message.Message):
    __slots__ = ("model_id",)
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    def __init__(self, model_id: _Optional[str] = ...) -> None: ...

class ListCapacityResponse(_message.Message):
    __slots__ = ("models", "compute_time")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_TIME_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelCapacity]
    compute_time: _timestamp_pb2.Timestamp
    def __init__(self, models: _Optional[_Iterable[_Union[ModelCapacity, _Mapping]]] = ..., compute_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class PlanReservationRequest(_message.Message):
    __slots__ = ("model_id", "tenant_id", "reserved_milli_mu_per_minute")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    RESERVED_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    tenant_id: str
    reserved_milli_mu_per_minute: int
    def __init__(self, model_id: _Optional[str] = ..., tenant_id: _Optional[str] = ..., reserved_milli_mu_per_minute: _Optional[int] = ...) -> None: ...

class PlanReservationResponse(_message.Message):
    __slots__ = ("sellable", "have_milli_mu_per_minute", "sold_milli_mu_per_minute", "headroom_milli_mu_per_minute", "explanation")
    SELLABLE_FIELD_NUMBER: _ClassVar[int]
    HAVE_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    SOLD_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    HEADROOM_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    sellable: bool
    have_milli_mu_per_minute: int
    sold_milli_mu_per_minute: int
    headroom_milli_mu_per_minute: int
    explanation: str
    def __init__(self, sellable: _Optional[bool] = ..., have_milli_mu_per_minute: _Optional[int] = ..., sold_milli_mu_per_minute: _Optional[int] = ..., headroom_milli_mu_per_minute: _Optional[int] = ..., explanation: _Optional[str] = ...) -> None: ...
