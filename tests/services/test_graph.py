"""The table of stages: its edges fit together, and Triton's contract has the same ones."""

from vtryon.types import PayloadKind, Stage
from vtryon_services.bridges.kafka.route import ROUTE
from vtryon_services.graph import GRAPH, PICTURES
from vtryon_services.triton.contract import contracts, stage_of

# A kind of payload, as the inputs and outputs of Triton's models name it.
TENSORS = {
    PayloadKind.EMBEDDINGS: "EMBEDDINGS",
    PayloadKind.NEGATIVE_EMBEDDINGS: "NEGATIVE_EMBEDDINGS",
    PayloadKind.REFERENCE_LATENTS: "REFERENCE_1",
    PayloadKind.NOISE: "NOISE",
    PayloadKind.LATENTS: "LATENTS",
}
# The latent encoder does not know which picture is a reference.
OUTPUTS = {**TENSORS, PayloadKind.REFERENCE_LATENTS: "LATENTS"}


def test_every_stage_is_in_the_graph_once_and_in_the_route_of_topics() -> None:
    assert set(GRAPH) == set(Stage) - {Stage.PIPELINE}
    assert set(ROUTE[:-1]) == set(GRAPH)
    assert len({spec.method.path for spec in GRAPH.values()}) == len(GRAPH)


def test_what_a_stage_gives_is_what_a_later_one_takes() -> None:
    given = {kind for spec in GRAPH.values() for kind in spec.gives}
    taken = {kind for spec in GRAPH.values() for kind in spec.takes}
    assert given <= taken
    assert taken - given == {*PICTURES, PayloadKind.NOISE}  # those come from the caller


def test_tritons_models_have_the_inputs_and_outputs_of_the_stages() -> None:
    for contract in contracts(16, 64):
        if contract.steps:
            continue  # the ensemble joins the others
        spec = GRAPH[stage_of(contract.model)]
        inputs = {tensor.name for tensor in contract.inputs}
        outputs = {tensor.name for tensor in contract.outputs}
        assert {TENSORS[kind] for kind in spec.takes - PICTURES} <= inputs
        assert {OUTPUTS[kind] for kind in spec.gives} <= outputs
        assert any(name.startswith("PICTURE") for name in inputs) == (spec.takes == PICTURES)
