"""Load for simulations: recorded traces, published statistics and rate curves as streams of requests.

workload = open_workload("servegen_m_large_rates_week1.csv.gz", seed=7, start_s=36_000, duration_s=3_600,
                         requests_per_s=12)
"""

from simulation.traces.opening import open_workload
from simulation.traces.recognise import Found, Kind, LeftOut, left_out, recognise, recognise_folder
from simulation.traces.workload import REQUESTS_MAX, SimRequest, Workload

__all__ = [
    "REQUESTS_MAX",
    "Found",
    "Kind",
    "LeftOut",
    "SimRequest",
    "Workload",
    "left_out",
    "open_workload",
    "recognise",
    "recognise_folder",
]
