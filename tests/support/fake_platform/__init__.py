"""A small platform in one process: real gRPC over loopback, everything in memory, knobs for what goes wrong."""

from tests.support.fake_platform.calibration import FakeCalibration, profile_of
from tests.support.fake_platform.control import FakeControlPlane
from tests.support.fake_platform.router import FakeRouter, Seen
from tests.support.fake_platform.server import FakePlatform

__all__ = ["FakeCalibration", "FakeControlPlane", "FakePlatform", "FakeRouter", "Seen", "profile_of"]
