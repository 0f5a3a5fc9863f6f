"""Rewrites of a traced ONNX graph that save onnxruntime time: fewer and cheaper operators for the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Graph, Node, Value = Any, Any, Any  # of onnx_ir, an extra: this module is handed what it has made


def rewrite(ir: Any, graph: Graph) -> None:
    """All rewrites, in place. `ir`: the module onnx_ir."""
    attention_of_tokens(ir, graph)
    sums_before_norms(ir, graph)


def attention_of_tokens(ir: Any, graph: Graph) -> None:
    """Attention takes `[B, N, D]` and its number of heads, in place of reshaped and transposed `[B, H, N, d]`; its mask
    is written out for each query, as onnxruntime wants it."""
    masks: dict[str, Value] = {}
    for node in [node for node in graph if node.op_type == "Attention"]:
        flat = [split_heads(value) for value in node.inputs[:3]]
        merge = merged_heads(node.outputs[0])
        if None in flat or merge is None:
            continue
        heads = node.inputs[0].shape[1]
        for i, value in enumerate(flat):
            node.replace_input_with(i, value)
        mask = node.inputs[3]
        if mask is not None and mask.shape[-2] == 1:
            if mask.name not in masks:
                masks[mask.name] = for_each_query(ir, graph, node, mask, flat[0])
            node.replace_input_with(3, masks[mask.name])
        node.attributes["q_num_heads"] = ir.AttrInt64("q_num_heads", heads)
        node.attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", heads)
        node.outputs[0].shape = merge.shape
        merge.replace_all_uses_with(node.outputs[0])


def split_heads(value: Value) -> Value | None:
    """`[B, N, D]` behind a reshape and a transpose to `[B, H, N, d]`; None for anything else."""
    transpose = value.producer()
    if transpose is None or transpose.op_type != "Transpose" or permutation(transpose) != [0, 2, 1, 3]:
        return None
    reshape = transpose.inputs[0].producer()
    return reshape.inputs[0] if reshape is not None and reshape.op_type == "Reshape" else None


def merged_heads(value: Value) -> Value | None:
    """`[B, N, D]` that a transpose and a reshape make of the attention's `[B, H, N, d]`; None for anything else."""
    (transpose,) = value.consumers() if len(value.consumers()) == 1 else (None,)
    if transpose is None or transpose.op_type != "Transpose" or permutation(transpose) != [0, 2, 1, 3]:
        return None
    reshapes = transpose.outputs[0].consumers()
    return reshapes[0].outputs[0] if len(reshapes) == 1 and reshapes[0].op_type == "Reshape" else None


def permutation(transpose: Node) -> list[int]:
    return list(transpose.attributes["perm"].as_ints())


def for_each_query(ir: Any, graph: Graph, node: Node, mask: Value, queries: Value) -> Value:
    """The mask `[B, 1, 1, N]` as `[B, 1, N, N]`."""
    one, length = constant(ir, graph, "one", [1]), ir.node("Shape", [queries], {"start": 1, "end": 2})
    shape = ir.node("Concat", [one, one, length.outputs[0], one], {"axis": 0})
    expand = ir.node("Expand", [mask, shape.outputs[0]])
    graph.insert_before(node, [length, shape, expand])
    return expand.outputs[0]


def constant(ir: Any, graph: Graph, name: str, numbers: list[int]) -> Value:
    """An initializer of whole numbers, made once."""
    if name not in graph.initializers:
        graph.register_initializer(ir.val(name, const_value=ir.tensor(numbers, dtype=ir.DataType.INT64, name=name)))
    return graph.initializers[name]


def sums_before_norms(ir: Any, graph: Graph) -> None:
    """A sum of sums before a layer norm becomes one Sum. Of Add and LayerNormalization onnxruntime would make its
    SkipLayerNormalization, which takes three times as long as the two."""
    for norm in [node for node in graph if node.op_type == "LayerNormalization"]:
        add = norm.inputs[0].producer()
        if add is None or add.op_type != "Add":
            continue
        total = ir.node("Sum", list(terms(add)))
        graph.insert_before(add, total)
        add.outputs[0].replace_all_uses_with(total.outputs[0])


def terms(add: Node) -> Iterator[Value]:
    """What a tree of additions adds up, where nothing else reads a part of it."""
    for value in add.inputs:
        inner = value.producer()
        if inner is not None and inner.op_type == "Add" and len(value.uses()) == 1 and not value.is_graph_output():
            yield from terms(inner)
        else:
            yield value
