"""Public traces: recognised by themselves, with the published counts, and giving the measured miss ratios of LRU."""

import csv

import numpy as np
import pytest

from kvpredict.simulate import simulate
from kvpredict.trace import Trace, read_trace

LIMIT = 3_000_000  # where the published counts are cut
FILES = {  # file: name in baselines.csv, format, requests, distinct keys
    "arc/OLTP.lis.zst": ("blk_arc_oltp", "arc", 914_145, 186_880),
    "arc/P3.lis.zst": ("blk_arc_p3", "arc", LIMIT, 576_788),
    "arc/P6.lis.zst": ("blk_arc_p6", "arc", LIMIT, 550_027),
    "cloudphysics/cloudPhysicsIO.csv": ("blk_cloudphysics", "csv", 113_872, 48_974),
    "cloudphysics/cloudPhysicsIO.txt": ("blk_cloudphysics", "plain", 113_872, 48_974),
    "cloudphysics/cloudPhysicsIO.vscsi": ("blk_cloudphysics", "vscsi", 113_872, 48_974),
    "cloudphysics/cloudPhysicsIO.oracleGeneral.bin": ("blk_cloudphysics", "oracle_general", 113_872, 48_974),
    "cloudphysics/cloudPhysicsIO.oracleGeneral.zst": ("blk_cloudphysics", "oracle_general", 113_872, 48_974),
    "lirs/2_pools.trace.gz": ("blk_lirs_2_pools", "lirs", 100_000, 9_939),
    "lirs/loop.trace.gz": ("blk_lirs_loop", "lirs", 505_500, 1_011),
    "lirs/multi3.trace.gz": ("blk_lirs_multi3", "lirs", 30_241, 7_454),
    "lirs/sprite.trace.gz": ("blk_lirs_sprite", "lirs", 133_996, 7_075),
    "mqsim/tpcc-small.trace": ("blk_mqsim_tpcc", "mqsim", 6_999, 6_985),
    "tencent/tencentBlock.ns1326.sample.csv": ("blk_tencent_ns1326", "tencent", 100_001, 50_350),
    "tencent/tencentBlock.ns1360.sample.csv": ("blk_tencent_ns1360", "tencent", 100_001, 98_650),
    "tencent/tencentBlock.ns2706.sample.csv": ("blk_tencent_ns2706", "tencent", 100_001, 34_571),
    "tencent/tencentBlock.ns3300.sample.csv": ("blk_tencent_ns3300", "tencent", 100_001, 39_611),
    "adaptsize/request.trace.xz": ("cdn_adaptsize", "adaptsize", 66_987, 36_815),
    "wiki/wiki_sampled_train_trace.tsv": ("cdn_wiki_train", "wiki", 50_000, 38_398),
    "address/gcc.trace.gz": ("cpu_gcc", "address", 515_683, 3_367),
    "cache2k/orm-busy.trace.xz": ("kv_orm_busy", "cache2k", LIMIT, 66_997),
    "scarab/scarab-recs.trace.xz": ("kv_scarab_recs", "scarab", 1_245_184, 258_368),
    "cache2k/web07.trace.xz": ("kv_web07", "cache2k", 76_118, 20_484),
    "mooncake/conversation_trace.head60.jsonl": ("llm_mooncake_conv_head", "mooncake", 180_012, 117_274),
}


@pytest.fixture(scope="module")
def baselines(shared_traces):
    with (shared_traces / "baselines.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["policy"] == "LRU"]
    return {(row["trace"], row["mode"], row["cache_size_frac"]): row for row in rows}


@pytest.mark.parametrize("file", FILES)
def test_counts_and_miss_ratios(file, shared_traces, baselines):
    name, form, requests, unique = FILES[file]
    trace = read_trace(shared_traces / file, limit=LIMIT)
    assert (trace.info["format"], len(trace), trace.unique) == (form, requests, unique)
    assert trace.info["skipped"] == trace.info["reordered"] == 0
    checked = 0
    for fraction in ("0.01", "0.1"):
        row = baselines[name, "unit", fraction]
        result = simulate(trace, "lru", int(row["cache_size"]))
        assert result.object_miss_ratio == pytest.approx(float(row["object_miss_ratio"]), abs=6e-7)
        row = baselines.get((name, "bytes", fraction))
        if row and trace.sizes is not None:
            result = simulate(
                with_first_sizes(trace) if name == "blk_cloudphysics" else trace,
                "lru",
                int(row["cache_size"]),
                unit="bytes",
            )
            assert int(trace.footprint * float(fraction)) == pytest.approx(int(row["cache_size"]), abs=1)
            assert result.object_miss_ratio == pytest.approx(float(row["object_miss_ratio"]), abs=6e-7)
            assert result.byte_miss_ratio == pytest.approx(float(row["byte_miss_ratio"]), abs=6e-7)
            checked += 1
    assert checked == (2 if trace.sizes is not None else 0)


def with_first_sizes(trace: Trace) -> Trace:
    """Return ``trace`` as its oracleGeneral file has it, which the baselines were measured on."""
    _, first = np.unique(trace.ids, return_index=True)
    return Trace(trace.keys, trace.times, trace.sizes[first][trace.ids])


def test_one_trace_in_five_formats(shared_traces):
    traces = {
        suffix: read_trace(shared_traces / "cloudphysics" / f"cloudPhysicsIO.{suffix}")
        for suffix in ("csv", "txt", "vscsi", "oracleGeneral.bin", "oracleGeneral.zst")
    }
    first_sizes = with_first_sizes(traces["csv"]).sizes
    for suffix, trace in traces.items():
        assert (trace.keys == traces["csv"].keys).all()
        if trace.sizes is not None:
            # oracleGeneral gives a block the size of its first request for good.
            assert (trace.sizes == (first_sizes if "oracle" in suffix else traces["csv"].sizes)).all()
            assert (np.floor(trace.times) == traces["csv"].times).all()


@pytest.mark.parametrize(
    ("file", "form", "requests"), [("kv_traces_1", "cachelib_kv", 99), ("block_traces_1", "cachelib_block", 999)]
)
def test_cachelib(file, form, requests, shared_traces):
    # The files have 100 and 1,000 lines, of which the first is the header.
    trace = read_trace(shared_traces / "cachelib" / f"{file}.csv")
    assert (trace.info["format"], len(trace)) == (form, requests)
    assert trace.sizes.min() >= 0
    assert trace.times[0] < trace.times[-1]


def test_mooncake_blocks(shared_traces):
    trace = read_trace(shared_traces / "mooncake" / "conversation_trace.head60.jsonl")
    depth, request = trace.column("depth"), trace.column("request")
    assert request[-1] == 7217
    assert ((depth == 0) == (np.diff(request, prepend=-1) == 1)).all()
    assert trace.times[-1] == 2223.0
    # A prompt has one block for each 512 tokens it has begun.
    last = np.flatnonzero(np.diff(request, append=-1))
    assert (depth[last] + 1 == -(-trace.column("input_length")[last] // 512)).all()
