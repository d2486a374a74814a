"""Files of kernel times, names of configurations, and what a start of a replica takes."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from engines.simulated.config_names import facts_of
from engines.simulated.hardware import HARDWARE
from engines.simulated.kernel_points import SHIPPED_POINTS, Component, KernelPoint, read_kernel_points
from fairlead.errors import InvalidArgumentError

HEADER = "config,component,batch_or_tokens,seq_or_context_len,ms"


def write(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "points.csv"
    path.write_text("\n".join((header, *rows)) + "\n")
    return path


def test_rows_become_points_by_configuration(tmp_path: Path) -> None:
    """Each configuration has its own points, in order, whatever the order of columns."""
    path = write(
        tmp_path, "1.5,c1,4,100,decode_step", "9,c2,64,0,linear_layers", "3,c1,1,512,prefill_step",
        header="ms,config,batch_or_tokens,seq_or_context_len,component",
    )  # fmt: skip
    assert read_kernel_points(path) == {
        "c1": (KernelPoint(Component.DECODE_STEP, 4, 100, 1.5), KernelPoint(Component.PREFILL_STEP, 1, 512, 3.0)),
        "c2": (KernelPoint(Component.LINEAR_LAYERS, 64, 0, 9.0),),
    }


def test_the_shipped_file() -> None:
    """What ships has three configurations and all 627 rows."""
    points = read_kernel_points()
    assert len(points) == 3
    assert sum(map(len, points.values())) == 627


def test_a_point_knows_the_work_it_measures() -> None:
    """Tokens, squares, sequences and context are those of the step-time formula."""
    decode = KernelPoint(Component.DECODE_STEP, 4, 100, 1.0)
    assert (decode.linear_tokens, decode.sequences, decode.context_tokens) == (4, 4, 400)
    assert (decode.prefill_tokens, decode.prefill_squares) == (0, 0)
    prefill = KernelPoint(Component.PREFILL_STEP, 2, 512, 1.0)
    assert (prefill.linear_tokens, prefill.prefill_squares, prefill.sequences) == (1024, 2 * 512**2, 0)
    assert KernelPoint(Component.DECODE_ATTENTION, 4, 100, 1.0).linear_tokens == 0
    assert KernelPoint(Component.LINEAR_LAYERS, 7, 0, 1.0).linear_tokens == 7


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("c,decode_step,1,128", "line 2: 4 values where the header names 5"),
        ("c,decode,1,128,1", "line 2: unknown component 'decode'; known: linear_layers"),
        ("c,decode_step,1,128,nan", "line 2: ms 'nan' is not a number"),
        ("c,decode_step,1,128,inf", "line 2: ms 'inf' is not a number"),
        ("c,decode_step,1,128,", "line 2: ms '' is not a number"),
        ("c,decode_step,1,128,-1", "line 2: ms '-1' must be 0 or more"),
        ("c,decode_step,1,128,0", "line 2: ms must be above 0"),
        ("c,decode_step,0,128,1", "line 2: batch_or_tokens '0' must be between 1 and"),
        ("c,decode_step,1.5,128,1", "line 2: batch_or_tokens '1.5' must be a whole number"),
        ("c,decode_step,1,0,1", "line 2: seq_or_context_len '0' must be between 1 and"),
        ("c,decode_step,1,1e12,1", "line 2: seq_or_context_len '1e12' must be between"),
        (",decode_step,1,128,1", "line 2: config is empty"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, row: str, message: str) -> None:
    """Every way a row can be wrong is named, with the file and the line."""
    with pytest.raises(InvalidArgumentError) as caught:
        read_kernel_points(write(tmp_path, row))
    assert caught.value.message.startswith("points.csv")
    assert message in caught.value.message


def test_files_that_are_none(tmp_path: Path) -> None:
    """A missing, empty, headless, cut or binary file is refused and says what it is."""
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(SHIPPED_POINTS.read_bytes()[:2_000])
    damaged = tmp_path / "damaged.csv.gz"
    damaged.write_bytes(SHIPPED_POINTS.read_bytes()[:1_000] + bytes(64) + SHIPPED_POINTS.read_bytes()[1_064:])
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00config")
    narrow = tmp_path / "narrow.csv"
    narrow.write_text("config,component,batch_or_tokens,ms\n")
    packed_nothing = tmp_path / "nothing.csv.gz"
    packed_nothing.write_bytes(gzip.compress(b""))
    for path, message in (
        (tmp_path / "absent.csv", "cannot read"),
        (cut, "damaged or cut off"),
        (damaged, "cut off"),
        (empty, "no column config"),
        (packed_nothing, "no column config"),
        (binary, "not text"),
        (narrow, "no column seq_or_context_len"),
        (write(tmp_path), "holds no rows"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            read_kernel_points(path)


@pytest.mark.parametrize(
    ("config", "label", "model", "host_ms", "kv", "weights_gb"),
    [
        ("h100_llama3.1-8b_bf16_tp1", "h100", "llama-3.1-8b", 0.7, 440_000, 16.1),
        ("a100_llama3.1-8b_bf16_tp1", "a100", "llama-3.1-8b", 0.7, 440_000, 16.1),
        ("h100_llama3.1-70b_bf16_tp4", "h100-tp4", "llama-3.1-70b", 2.0, 465_000, 141.1),
        ("a100_llama3.1-70b_bf16_tp4", "a100-tp4", "llama-3.1-70b", 2.0, 465_000, 141.1),
        ("h100_llama3.1-70b_bf16_tp8", "h100-tp8", "llama-3.1-70b", 2.0, 1_360_000, 141.1),
    ],
)
def test_names_of_known_configurations(
    config: str, label: str, model: str, host_ms: float, kv: int, weights_gb: float
) -> None:
    """Host work, KV capacity and label follow from the name, and are those known of the five configurations."""
    facts = facts_of(config)
    assert (facts.label, facts.model, facts.host_ms) == (label, model, host_ms)
    assert (facts.kv_capacity_tokens, facts.weights_gb, facts.notes) == (kv, weights_gb, ())
    assert HARDWARE[label].kv_capacity_tokens == kv


def test_names_of_other_configurations() -> None:
    """Other models get a label from the whole name, FP8 halves the weights, and bigger cards hold more."""
    qwen = facts_of("H200_qwen2.5-32b_fp8_tp2")
    assert (qwen.label, qwen.model, qwen.weights_gb) == ("h200-qwen2.5-32b-fp8-tp2", "qwen2.5-32b", 32.0)
    assert 131_072 < (0.9 * 2 * 1.02e9 * 141 - 32e9) / qwen.kv_capacity_tokens < 327_680
    assert facts_of("h100_mixtral-8x7b_fp8_tp1").weights_gb == 56.0
    assert facts_of("h100_llama3.1-8b_fp8_tp1").label == "h100-llama3.1-8b-fp8-tp1"
    assert facts_of("h100_llama3.1-405b_fp8_tp8").kv_capacity_tokens > 300_000


@pytest.mark.parametrize(
    ("config", "note"),
    [
        ("my engine", "is not of the form"),
        ("z9_llama3.1-8b_bf16_tp1", "memory of 'z9' is not known"),
        ("h100_llama3.1-8b_odd_tp1", "weight format 'odd' is not known"),
        ("h100_llama3.1-70b_bf16_tp1", "leave no room"),
    ],
)
def test_what_a_name_does_not_tell_is_assumed_aloud(config: str, note: str) -> None:
    """A default is used and noted; the label is one that a profile can carry."""
    facts = facts_of(config)
    assert note in facts.notes[0]
    assert facts.kv_capacity_tokens > 0
    assert " " not in facts.label


def test_cold_start_reads_the_weights_and_captures_graphs() -> None:
    """The 8B starts within a minute by default, the 70B reads nine times as much; a parameter moves each."""
    assert HARDWARE["h100"].cold_start_s() == pytest.approx(45 + 16.1 / 3.5)
    assert HARDWARE["h100-tp4"].cold_start_s(read_gb_per_s=2.0, graph_capture_s=60.0) == pytest.approx(60 + 141.1 / 2)
    for arguments in ({"read_gb_per_s": 0.0}, {"graph_capture_s": -1.0}, {"read_gb_per_s": float("nan")}):
        with pytest.raises(InvalidArgumentError):
            HARDWARE["h100"].cold_start_s(**arguments)
