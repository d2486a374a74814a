"""Cost profiles as messages: what is stored in etcd and sent over the APIs."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from google.protobuf import timestamp_pb2
from google.protobuf.message import DecodeError

from fairlead.admin.v1 import calibration_pb2
from fairlead.errors import InvalidArgumentError
from model_units.cost import CostForm, CostProfile, Evidence

_FORM_TO_PROTO: Final = MappingProxyType(
    {
        CostForm.ATTENTION: calibration_pb2.COST_FORM_ATTENTION,
        CostForm.PRODUCT: calibration_pb2.COST_FORM_PRODUCT,
    }
)


def form_to_proto(form: CostForm) -> calibration_pb2.CostForm.ValueType:
    """The wire's name of a form."""
    return _FORM_TO_PROTO[form]


def form_from_proto(form: int, field: str = "form") -> CostForm:
    """The form a message names; one that is not set is ATTENTION.

    Args:
        form: A `calibration_pb2.CostForm`.
        field: What refusals call it.

    Raises:
        InvalidArgumentError: A number that stands for no form.
    """
    if form == calibration_pb2.COST_FORM_UNSPECIFIED:
        return CostForm.ATTENTION
    for known, number in _FORM_TO_PROTO.items():
        if number == form:
            return known
    raise InvalidArgumentError(f"{field} {form} stands for no form of the cost function", field=field)


def profile_to_proto(profile: CostProfile) -> calibration_pb2.CostProfile:
    """A profile as a message; `profile_from_proto` gives an equal one back.

    Args:
        profile: The profile.
    """
    message = calibration_pb2.CostProfile(
        profile_id=profile.profile_id,
        model=profile.model,
        hardware=profile.hardware,
        version=profile.version,
        engine=profile.engine,
        provenance=profile.provenance,
        tpot_objective_ms=profile.tpot_objective_ms,
        ttft_objective_ms=profile.ttft_objective_ms,
        form=form_to_proto(profile.form),
        a=profile.a,
        b=profile.b,
        d=profile.d,
        g=profile.g,
        image_s=profile.image_s,
        image_cpu_s=profile.image_cpu_s,
    )
    if profile.create_time:
        message.create_time.FromJsonString(profile.create_time)
    if profile.evidence is not None:
        message.evidence.CopyFrom(_evidence_to_proto(profile.evidence))
    return message


def _evidence_to_proto(evidence: Evidence) -> calibration_pb2.ProfileEvidence:
    message = calibration_pb2.ProfileEvidence(
        hold_out_error=evidence.hold_out_error,
        class_errors=evidence.class_errors,
        points=evidence.points,
        engine_s=evidence.engine_s,
        latency_curve=[
            calibration_pb2.LatencyPoint(intensity_ms=intensity_ms, tpot_ms=tpot_ms)
            for intensity_ms, tpot_ms in evidence.latency_curve
        ],
        latency_spread=evidence.latency_spread,
    )
    for name, (low, high) in evidence.intervals.items():
        message.intervals[name].low = low
        message.intervals[name].high = high
    return message


def profile_from_proto(message: calibration_pb2.CostProfile) -> CostProfile:
    """A profile of a message.

    Args:
        message: From a client or from etcd.

    Raises:
        InvalidArgumentError: A field is out of its range or contradicts another; the message names it.
    """
    form = form_from_proto(message.form, "profile.form")
    try:
        return CostProfile(
            profile_id=message.profile_id,
            model=message.model,
            hardware=message.hardware,
            version=message.version,
            engine=message.engine,
            provenance=message.provenance,
            create_time=_time_from_proto(message.create_time) if message.HasField("create_time") else "",
            tpot_objective_ms=message.tpot_objective_ms,
            ttft_objective_ms=message.ttft_objective_ms,
            form=form,
            a=message.a,
            b=message.b,
            d=message.d,
            g=message.g,
            image_s=message.image_s,
            image_cpu_s=message.image_cpu_s,
            evidence=_evidence_from_proto(message.evidence) if message.HasField("evidence") else None,
        )
    except ValueError as error:
        raise InvalidArgumentError(str(error), field="profile") from error


def _time_from_proto(time: timestamp_pb2.Timestamp) -> str:
    try:
        return time.ToJsonString()
    except ValueError as error:
        raise ValueError(f"create_time: {error}") from error


def _evidence_from_proto(message: calibration_pb2.ProfileEvidence) -> Evidence:
    return Evidence(
        intervals={name: (interval.low, interval.high) for name, interval in message.intervals.items()},
        hold_out_error=message.hold_out_error,
        class_errors=dict(message.class_errors),
        points=message.points,
        engine_s=message.engine_s,
        latency_curve=tuple((point.intensity_ms, point.tpot_ms) for point in message.latency_curve),
        latency_spread=message.latency_spread,
    )


def decode_profile(value: bytes) -> CostProfile:
    """A profile of a stored value.

    Args:
        value: A serialised `calibration_pb2.CostProfile`.

    Raises:
        InvalidArgumentError: Not such a message, or one that holds no valid profile.
    """
    try:
        message = calibration_pb2.CostProfile.FromString(value)
    except DecodeError as error:
        raise InvalidArgumentError("the stored value is no cost profile message", field="profile") from error
    return profile_from_proto(message)
