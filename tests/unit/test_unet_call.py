"""A call of the UNet as one value: rows of a condition, and what diffusers' networks receive."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.runtime.unet_call import Condition, UNetCall

VECTOR = torch.arange(6.0).view(3, 2)


def call(vector: Tensor | None = None) -> UNetCall:
    images, tokens = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 4, 2, 2), torch.arange(3.0).view(3, 1, 1)
    return UNetCall(images, torch.tensor(5.0), Condition(tokens, vector))


@pytest.mark.parametrize("vector", [None, VECTOR])
def test_rows_stay_together_when_a_call_is_cut(vector: Tensor | None) -> None:
    first, last = call(vector).split(2)
    assert [len(part.condition) for part in (first, last)] == [2, 1]
    for part, rows in ((first, [0, 1]), (last, [2])):
        assert part.images[:, 0, 0, 0].tolist() == part.condition.tokens.flatten().tolist() == rows
        assert (part.condition.vector is None) is (vector is None)
        if part.condition.vector is not None:
            assert torch.equal(part.condition.vector, VECTOR[rows])


def test_conditions_join_and_change_with_their_vectors() -> None:
    one = call(VECTOR).condition
    both = Condition.cat([one, one.map(lambda rows: rows * 2)])
    assert both.vector is not None
    assert torch.equal(both.vector, torch.cat([VECTOR, VECTOR * 2]))
    assert both.tokens.flatten().tolist() == [0, 1, 2, 0, 2, 4]
    assert Condition.cat([call().condition] * 2).vector is None


def test_a_network_is_given_only_what_there_is() -> None:
    given: dict[str, Any] = {}

    def network(images: Tensor, time: Tensor, **options: Any) -> tuple[Tensor]:
        given.update(options)
        return (images,)

    call().compute(network)
    assert set(given) == {"encoder_hidden_states", "return_dict"}
    residuals = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    whole = call(VECTOR)
    UNetCall(whole.images, whole.time, whole.condition, residuals).compute(network)
    assert given["class_labels"] is VECTOR
    assert given["down_block_additional_residuals"] == residuals[:2]
    assert given["mid_block_additional_residual"] is residuals[2]


def test_a_clone_shares_no_memory() -> None:
    original = call(VECTOR)
    copied = original.clone()
    assert len(copied.inputs) == len(original.inputs) == 4
    for one, other in zip(copied.inputs, original.inputs, strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()
