"""Each format's fixture gives exactly what its description says."""

import bz2
import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
import zstandard

from kvpredict.core.errors import TraceError, UnknownName
from kvpredict.trace import format_names, hash_keys, read_trace
from kvpredict.trace.readers import trace_format

FIXTURES = Path(__file__).parents[1] / "fixtures" / "traces"

FORMAT = {  # fixture: format, requests, distinct keys
    "address.trace": ("address", 4, 2),
    "adaptsize.trace": ("adaptsize", 4, 3),
    "arc.lis": ("arc", 7, 4),
    "bailian.jsonl": ("bailian", 9, 5),
    "cache2k.trace": ("cache2k", 400, 49),
    "cachelib_block.csv": ("cachelib_block", 3, 2),
    "cachelib_kv.csv": ("cachelib_kv", 4, 3),
    "lirs.trace": ("lirs", 4, 3),
    "mooncake.jsonl": ("mooncake", 8, 4),
    "mqsim.trace": ("mqsim", 3, 2),
    "msr.csv": ("msr", 5, 3),
    "numbers.txt": ("plain", 4, 3),
    "oracle_general.bin": ("oracle_general", 5, 3),
    "plain.txt": ("plain", 6, 4),
    "scarab.trace": ("scarab", 400, 40),
    "shop.csv": ("csv", 4, 3),
    "tencent.csv": ("tencent", 5, 3),
    "tencent.tsv": ("tencent", 4, 3),
    "twitter.csv": ("twitter", 7, 3),
    "vscsi1.bin": ("vscsi", 4, 3),
    "vscsi2.bin": ("vscsi", 4, 3),
    "wiki.tsv": ("wiki", 3, 2),
}
COMPRESS = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "bzip2": bz2.compress,
}


def fixture(name, **options):
    return read_trace(FIXTURES / name, **options)


def test_every_fixture_is_listed():
    assert {p.name for p in FIXTURES.iterdir()} - {"README.md"} == set(FORMAT)


def test_every_format_has_a_fixture():
    # Parquet files are made in test_read_parquet.py.
    assert {f for f, _, _ in FORMAT.values()} | {"parquet"} == set(format_names())


@pytest.mark.parametrize("name", format_names())
def test_a_format_describes_itself(name):
    found = trace_format(name)
    assert found.name == name
    assert found.description


@pytest.mark.parametrize(("name", "expected"), FORMAT.items(), ids=lambda v: v if isinstance(v, str) else "")
def test_sniffed(name, expected):
    trace = fixture(name)
    assert (trace.info["format"], len(trace), trace.unique) == expected
    assert trace.info["skipped"] == 0
    assert trace.name == Path(name).stem


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("name", FORMAT)
def test_compressed_is_the_same(name, kind, tmp_path):
    # Named without a suffix for the compression: only the content tells.
    data = (FIXTURES / name).read_bytes()
    (tmp_path / name).write_bytes(COMPRESS[kind](data))
    trace = read_trace(tmp_path / name)
    assert trace.info["compression"] == kind
    assert trace.info["format"] == FORMAT[name][0]
    assert trace.fingerprint == fixture(name).fingerprint


@pytest.mark.parametrize("kind", ["gzip", "none"])
@pytest.mark.parametrize("name", FORMAT)
def test_where_blocks_end_changes_nothing(name, kind, tmp_path, monkeypatch):
    whole, pack = fixture(name), COMPRESS.get(kind, bytes)
    (tmp_path / name).write_bytes(pack((FIXTURES / name).read_bytes()))
    monkeypatch.setattr("kvpredict.trace.readers._source.READ", 7)
    monkeypatch.setattr("kvpredict.trace.readers._source.BLOCK", 11)
    assert read_trace(tmp_path / name).fingerprint == whole.fingerprint


@pytest.mark.parametrize("kind", COMPRESS)
def test_several_compressed_members_in_one_file(kind, tmp_path):
    whole = (FIXTURES / "twitter.csv").read_bytes()
    parts = COMPRESS[kind](whole[:100]) + COMPRESS[kind](whole[100:])
    (tmp_path / "twitter.csv").write_bytes(parts)
    assert read_trace(tmp_path / "twitter.csv").fingerprint == fixture("twitter.csv").fingerprint


def test_the_name_loses_the_suffix_of_the_compression(tmp_path):
    (tmp_path / "Monday.lis.GZ").write_bytes(gzip.compress((FIXTURES / "arc.lis").read_bytes()))
    assert read_trace(tmp_path / "Monday.lis.GZ").name == "Monday"
    assert read_trace(tmp_path / "Monday.lis.GZ", name="m").name == "m"


@pytest.mark.parametrize("name", FORMAT)
def test_limit(name):
    whole, part = fixture(name), fixture(name, limit=2)
    assert len(part) == 2
    assert part.keys.tolist() == whole.keys[:2].tolist()


def test_adaptsize():
    trace = fixture("adaptsize.trace")
    assert trace.keys.tolist() == [0, 1, 0, 2]
    assert trace.times.tolist() == [1, 2, 2, 5]
    assert trace.sizes.tolist() == [68, 7454, 68, 1822]


def test_address_folds_to_lines():
    trace = fixture("address.trace")
    assert trace.keys.tolist() == [0x1FFFFF50 // 64, 0x1FFFFF58 // 64, 0x1FFFFF88 // 64, 0x1FFFFF40 // 64]
    assert [trace.categories["op"][code] for code in trace.column("op")] == ["load", "store", "load", "load"]
    assert trace.column("instructions").tolist() == [1, 1, 6, 0]


def test_arc_expands_ranges():
    trace = fixture("arc.lis")
    assert trace.keys.tolist() == [10, 11, 12, 13, 12, 10, 11]
    assert trace.column("request").tolist() == [0, 0, 0, 0, 1, 2, 2]


def test_bailian():
    trace = fixture("bailian.jsonl")
    assert trace.keys.tolist() == [1089, 1090, 1091, 1089, 6326, 1089, 1090, 1091, 13148]
    assert trace.times[[0, 3, 5]].tolist() == [61.114, 61.5, 62.25]
    assert trace.column("request").tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert trace.column("depth").tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]
    assert trace.column("parent_chat_id").tolist() == [-1] * 5 + [159] * 4
    assert trace.column("turn").tolist() == [1] * 5 + [2] * 4
    assert [trace.categories["type"][c] for c in trace.column("type")] == ["text"] * 3 + ["search"] * 2 + ["text"] * 4


def test_mooncake_milliseconds():
    trace = fixture("mooncake.jsonl")
    assert trace.keys.tolist() == [0, 1, 2, 0, 3, 0, 1, 2]
    assert trace.times.tolist() == [0, 0, 0, 1.5, 1.5, 3, 3, 3]
    assert trace.column("input_length").tolist() == [1100] * 3 + [513] * 2 + [1200] * 3
    assert trace.column("output_length").tolist() == [5] * 3 + [7] * 2 + [1] * 3


def test_binary_keys():
    assert fixture("cache2k.trace").keys.tolist() == [0x10000000 + i * i % 97 for i in range(400)]
    assert (
        fixture("scarab.trace").keys[0] == int.from_bytes((FIXTURES / "scarab.trace").read_bytes()[:8], "big") - 2**64
    )


def test_cachelib_kv():
    trace = fixture("cachelib_kv.csv")
    assert trace.keys.tolist() == hash_keys(["abc1", "abc2", "abc1", '"x']).tolist()
    assert trace.sizes.tolist() == [104, 5004, 104, 2]
    assert trace.column("op_count").tolist() == [2, 1, 1, 1]
    assert trace.times is None


def test_cachelib_block():
    trace = fixture("cachelib_block.csv")
    assert trace.keys.tolist() == hash_keys(["12ce-9e05", "cfb4-0123", "12ce-9e05"]).tolist()
    assert trace.sizes.tolist() == [8388608, 6307425, 4096]
    assert trace.times.tolist() == [1702511878, 1702511879, 1702511880]
    assert trace.column("io_offset").tolist() == [0, 0, 8192]
    assert trace.categories["op"] == ("getChunkData.NotInitialized", "putChunk.Permanent")


def test_lirs_marks_are_no_requests():
    assert fixture("lirs.trace").keys.tolist() == [5, 6, 5, 7]


def test_mqsim():
    trace = fixture("mqsim.trace")
    assert trace.keys.tolist() == [264719034, 197570570, 264719034]
    assert trace.sizes.tolist() == [8192, 8192, 16384]
    assert trace.times == pytest.approx([0.938513, 0.938828, 0.938944], abs=1e-12)
    assert trace.column("device").tolist() == [4, 3, 4]
    assert [trace.categories["op"][c] for c in trace.column("op")] == ["write", "read", "read"]


def test_msr():
    trace = fixture("msr.csv")
    # 128166372003061629 ticks of 100 ns since 1601 are 2007-02-22 17:00:00.3061629 UTC.
    assert trace.times[0] == pytest.approx(1172163600.3061629, abs=1e-6)
    assert trace.sizes.tolist() == [32768, 65536, 4096, 32768, 65536]
    assert trace.column("volume").tolist() == [0, 0, 1, 0, 0]
    assert trace.keys[0] == trace.keys[3] != trace.keys[2]
    assert trace.column("response_time")[0] == pytest.approx(0.0113736)
    assert trace.categories["op"] == ("read", "write")
    assert trace.info["reordered"] == 1
    assert trace.times[4] == trace.times[3]


def test_oracle_general():
    trace = fixture("oracle_general.bin")
    assert trace.keys.view(np.uint64).tolist() == [7, 2**63 + 5, 7, 8, 2**63 + 5]
    assert trace.times.tolist() == [100, 100, 101, 102, 105]
    assert trace.sizes.tolist() == [512, 4096, 512, 0, 4096]


def test_plain():
    lines = ["/cart", "/item/7", "/cart", "/search?q=a,b", "/item/9 b", "/item/7"]
    assert fixture("plain.txt").keys.tolist() == hash_keys(lines).tolist()
    assert fixture("numbers.txt").keys.tolist() == [42932745, 42932746, 42932745, -3]


def test_tencent():
    trace = fixture("tencent.csv")
    assert trace.ids.tolist() == [0, 1, 2, 1, 0]
    assert trace.sizes.tolist() == [65536, 4096, 65536, 4096, 32768]
    assert trace.times[0] == 1538323200
    assert trace.column("volume").tolist() == [1063, 1048, 1048, 1048, 1063]
    sample = fixture("tencent.tsv")
    assert sample.keys.tolist() == [0, 1, 0, 2]
    assert sample.sizes.tolist() == [32768, 65536, 32768, 4096]


def test_twitter():
    trace = fixture("twitter.csv")
    assert trace.keys[:2].tolist() == hash_keys(["nz:u:eeW511W3dcH3de3d15ec", "nz:u:aaW511W3dcH3de3d15ec"]).tolist()
    assert trace.sizes.tolist() == [326, 22, 142, 49, 326, 142, 49]
    assert trace.times.tolist() == [0, 0, 1, 1, 2, 4, 4]
    assert trace.column("ttl").tolist() == [0, 0, 7200, 0, 0, 0, 0]
    assert [trace.categories["op"][c] for c in trace.column("op")] == [
        "get",
        "get",
        "set",
        "gets",
        "get",
        "get",
        "delete",
    ]


@pytest.mark.parametrize("version", [1, 2])
def test_vscsi(version):
    trace = fixture(f"vscsi{version}.bin")
    assert trace.keys.tolist() == [42, 43, 42, 0]
    assert trace.times.tolist() == [1, 1.5, 2, 2.25]
    assert trace.sizes.tolist() == [512, 4096, 512, 0]
    assert [trace.categories["op"][c] for c in trace.column("op")] == ["read", "write", "read", "0x35"]
    assert ("response_time" in trace.columns) == (version == 2)


def test_wiki():
    trace = fixture("wiki.tsv")
    assert trace.keys.tolist() == [-4128389, 99812, -4128389]
    assert trace.sizes.tolist() == [2048, 512, 2048]
    assert trace.column("time_firstbyte").tolist() == [1.76e-4, 2.0e-4, 1.1e-4]
    assert trace.categories["image_type"] == ("jpeg", "png")


def test_order_sort_moves_requests():
    clamped, by_time = fixture("msr.csv"), fixture("msr.csv", order="sort")
    assert by_time.keys.tolist() == clamped.keys[[0, 1, 2, 4, 3]].tolist()
    assert by_time.sizes.tolist() == clamped.sizes[[0, 1, 2, 4, 3]].tolist()
    assert by_time.times[4] > by_time.times[3]
    assert by_time.info["reordered"] == clamped.info["reordered"] == 1


def test_unknown_format():
    with pytest.raises(UnknownName, match=r"'oracle_generall'.*Did you mean 'oracle_general'"):
        fixture("arc.lis", format="oracle_generall")


@pytest.mark.parametrize("option", [{"on_error": "ignore"}, {"order": "random"}])
def test_unknown_option_value(option):
    with pytest.raises(UnknownName, match=next(iter(option.values()))):
        fixture("arc.lis", **option)


def test_a_format_with_fixed_columns_takes_none():
    with pytest.raises(TraceError, match="fixes its columns"):
        fixture("arc.lis", format="arc", columns={"key": "start"})


def test_limit_must_be_positive():
    with pytest.raises(TraceError, match="limit"):
        fixture("arc.lis", limit=0)
