"""Linked lists against Python lists."""

from hypothesis import given
from hypothesis import strategies as st

from kvpredict.core.lists import (
    back,
    front,
    is_empty,
    make_links,
    move_to_front,
    newer,
    older,
    push_back,
    push_front,
    unlink,
)
from kvpredict.core.validate import list_nodes
from tests.strategies import THOROUGH

SLOTS, LISTS = 6, 3


@THOROUGH
@given(st.lists(st.tuples(st.sampled_from(["front", "back", "move", "out"]), st.integers(0, 5), st.integers(0, 2))))
def test_lists_equal_a_model(operations: list[tuple[str, int, int]]) -> None:
    links = make_links(SLOTS, LISTS)
    model: list[list[int]] = [[] for _ in range(LISTS)]  # front first
    for name, node, which in operations:
        holder = next((k for k, nodes in enumerate(model) if node in nodes), None)
        if name in ("front", "back") and holder is None:
            (push_front if name == "front" else push_back)(links, SLOTS + which, node)
            model[which].insert(0 if name == "front" else len(model[which]), node)
        elif name == "move" and holder is not None:  # also from one list to another
            move_to_front(links, SLOTS + which, node)
            model[holder].remove(node)
            model[which].insert(0, node)
        elif name == "out" and holder is not None:
            unlink(links, node)
            model[holder].remove(node)
        for k, nodes in enumerate(model):
            sentinel = SLOTS + k
            assert list_nodes(links, sentinel) == nodes
            assert is_empty(links, sentinel) == (not nodes)
            assert front(links, sentinel) == (nodes[0] if nodes else sentinel)
            assert back(links, sentinel) == (nodes[-1] if nodes else sentinel)
            around = [sentinel, *nodes, sentinel]
            for i, held in enumerate(nodes, 1):
                assert (newer(links, held), older(links, held)) == (around[i - 1], around[i + 1])
