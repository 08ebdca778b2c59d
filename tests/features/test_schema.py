import pytest

from kvpredict import ArtifactError, KvpredictError
from kvpredict.features.schema import BASE_FEATURES, Schema


def test_round_trip() -> None:
    schema = Schema(("op", "depth"), {"op": ("get", "set")})
    again = Schema.from_json(schema.as_json())
    assert again == schema
    assert again.fingerprint == schema.fingerprint
    assert again.width == len(BASE_FEATURES) + 2


def test_fingerprint_tells_names_order_and_categories_apart() -> None:
    schemas = [Schema(), Schema(("a",)), Schema(("a", "b")), Schema(("b", "a")), Schema(("a",), {"a": ("x",)})]
    assert len({s.fingerprint for s in schemas}) == len(schemas)


def test_a_mismatch_is_refused_naming_both() -> None:
    content = Schema().as_json() | {"fingerprint": "0123456789abcdef"}
    with pytest.raises(ArtifactError, match=f"0123456789abcdef.*{Schema().fingerprint}"):
        Schema.from_json(content)


def test_encode() -> None:
    schema = Schema(("op", "depth"), {"op": ("get", "set")})
    assert schema.encode({"op": "set", "depth": 3}) == (1.0, 3.0)
    assert schema.encode({"op": "never seen"}) == (-1.0, 0.0)


def test_a_repeated_name_is_refused() -> None:
    with pytest.raises(KvpredictError, match="distinct"):
        Schema(("recency",))
