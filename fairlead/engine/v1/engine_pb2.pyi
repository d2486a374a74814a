import datetime

from fairlead.inference.v1 import inference_pb2 as _inference_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReplicaState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLICA_STATE_UNSPECIFIED: _ClassVar[ReplicaState]
    REPLICA_STATE_STARTING: _ClassVar[ReplicaState]
    REPLICA_STATE_READY: _ClassVar[ReplicaState]
    REPLICA_STATE_DRAINING: _ClassVar[ReplicaState]
    REPLICA_STATE_UNHEALTHY: _ClassVar[ReplicaState]
REPLICA_STATE_UNSPECIFIED: ReplicaState
REPLICA_STATE_STARTING: ReplicaState
REPLICA_STATE_READY: ReplicaState
REPLICA_STATE_DRAINING: ReplicaState
REPLICA_STATE_UNHEALTHY: ReplicaState

class EngineGenerateRequest(_message.Message):
    __slots__ = ("request_id", "tenant_id", "request", "priority", "prefill_milli_mu", "decode_milli_mu")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    PREFILL_MILLI_MU_FIELD_NUMBER: _ClassVar[int]
    DECODE_MILLI_MU_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant_id: str
    request: _inference_pb2.GenerateRequest
    priority: _inference_pb2.Priority
    prefill_milli_mu: int
    decode_milli_mu: int
    def __init__(self, request_id: _Optional[str] = ..., tenant_id: _Optional[str] = ..., request: _Optional[_Union[_inference_pb2.GenerateRequest, _Mapping]] = ..., priority: _Optional[_Union[_inference_pb2.Priority, str]] = ..., prefill_milli_mu: _Optional[int] = ..., decode_milli_mu: _Optional[int] = ...) -> None: ...

class EngineGenerateResponse(_message.Message):
    __slots__ = ("text", "output_tokens", "finish_reason", "usage", "load")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    text: str
    output_tokens: int
    finish_reason: _inference_pb2.FinishReason
    usage: _inference_pb2.Usage
    load: LoadReport
    def __init__(self, text: _Optional[str] = ..., output_tokens: _Optional[int] = ..., finish_reason: _Optional[_Union[_inference_pb2.FinishReason, str]] = ..., usage: _Optional[_Union[_inference_pb2.Usage, _Mapping]] = ..., load: _Optional[_Union[LoadReport, _Mapping]] = ...) -> None: ...

class WatchLoadRequest(_message.Message):
    __slots__ = ("router_id", "interval")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    interval: _duration_pb2.Duration
    def __init__(self, router_id: _Optional[str] = ..., interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class LoadReport(_message.Message):
    __slots__ = ("replica_id", "sequence", "report_time", "queued_requests", "pending_prefill_milli_mu", "running_requests", "decode_milli_mu", "kv_used_tokens", "progress_tokens", "state", "utilization")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REPORT_TIME_FIELD_NUMBER: _ClassVar[int]
    QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PENDING_PREFILL_MILLI_MU_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DECODE_MILLI_MU_FIELD_NUMBER: _ClassVar[int]
    KV_USED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    sequence: int
    report_time: _timestamp_pb2.Timestamp
    queued_requests: int
    pending_prefill_milli_mu: int
    running_requests: int
    decode_milli_mu: int
    kv_used_tokens: int
    progress_tokens: int
    state: ReplicaState
    utilization: float
    def __init__(self, replica_id: _Optional[str] = ..., sequence: _Optional[int] = ..., report_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., queued_requests: _Optional[int] = ..., pending_prefill_milli_mu: _Optional[int] = ..., running_requests: _Optional[int] = ..., decode_milli_mu: _Optional[int] = ..., kv_used_tokens: _Optional[int] = ..., progress_tokens: _Optional[int] = ..., state: _Optional[_Union[ReplicaState, str]] = ..., utilization: _Optional[float] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("replica_id",)
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    def __init__(self, replica_id: _Optional[str] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("requests_in_flight",)
    REQUESTS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    requests_in_flight: int
    def __init__(self, requests_in_flight: _Optional[int] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("replica_id", "address", "model_id", "hardware", "engine", "engine_version", "capacity_milli_mu_per_minute", "state", "sequences_max", "kv_capacity_tokens", "context_tokens", "host", "rack", "start_time", "agent_pid", "engine_pid", "ops_address", "engine_restarts", "slot")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_MILLI_MU_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_MAX_FIELD_NUMBER: _ClassVar[int]
    KV_CAPACITY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    RACK_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    AGENT_PID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PID_FIELD_NUMBER: _ClassVar[int]
    OPS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_RESTARTS_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    address: str
    model_id: str
    hardware: str
    engine: str
    engine_version: str
    capacity_milli_mu_per_minute: int
    state: ReplicaState
    sequences_max: int
    kv_capacity_tokens: int
    context_tokens: int
    host: str
    rack: str
    start_time: _timestamp_pb2.Timestamp
    agent_pid: int
    engine_pid: int
    ops_address: str
    engine_restarts: int
    slot: str
    def __init__(self, replica_id: _Optional[str] = ..., address: _Optional[str] = ..., model_id: _Optional[str] = ..., hardware: _Optional[str] = ..., engine: _Optional[str] = ..., engine_version: _Optional[str] = ..., capacity_milli_mu_per_minute: _Optional[int] = ..., state: _Optional[_Union[ReplicaState, str]] = ..., sequences_max: _Optional[int] = ..., kv_capacity_tokens: _Optional[int] = ..., context_tokens: _Optional[int] = ..., host: _Optional[str] = ..., rack: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., agent_pid: _Optional[int] = ..., engine_pid: _Optional[int] = ..., ops_address: _Optional[str] = ..., engine_restarts: _Optional[int] = ..., slot: _Optional[str] = ...) -> None: ...

class Faults(_message.Message):
    __slots__ = ("hang", "freeze_after_tokens", "slow_factor", "crash_marker", "garbage", "out_of_memory")
    HANG_FIELD_NUMBER: _ClassVar[int]
    FREEZE_AFTER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SLOW_FACTOR_FIELD_NUMBER: _ClassVar[int]
    CRASH_MARKER_FIELD_NUMBER: _ClassVar[int]
    GARBAGE_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_MEMORY_FIELD_NUMBER: _ClassVar[int]
    hang: bool
    freeze_after_tokens: int
    slow_factor: float
    crash_marker: str
    garbage: bool
    out_of_memory: bool
    def __init__(self, hang: _Optional[bool] = ..., freeze_after_tokens: _Optional[int] = ..., slow_factor: _Optional[float] = ..., crash_marker: _Optional[str] = ..., garbage: _Optional[bool] = ..., out_of_memory: _Optional[bool] = ...) -> None: ...

class SetFaultsRequest(_message.Message):
    __slots__ = ("faults",)
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    faults: Faults
    def __init__(self, faults: _Optional[_Union[Faults, _Mapping]] = ...) -> None: ...

class SetFaultsResponse(_message.Message):
    __slots__ = ("faults",)
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    faults: Faults
    def __init__(self, faults: _Optional[_Union[Faults, _Mapping]] = ...) -> None: ...
