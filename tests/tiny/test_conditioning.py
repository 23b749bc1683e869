"""Prompts through the real text encoder: kinds of emphasis, and letters that tokenisers treat differently."""

import pytest
import torch
from torch import Tensor

from pipelines.ask.plan import make_plan
from pipelines.ask.prompt import chunks
from pipelines.ask.request import GenerationRequest, HiresSettings
from pipelines.drawing.phases import render
from pipelines.errors import InvalidInput
from pipelines.models.model import Model


@pytest.fixture
def encode(networks: Model):  # type: ignore[no-untyped-def]
    def encoded(text: str, emphasis: str = "Original") -> Tensor:
        return networks.text.encode([text], 1, emphasis).conditions[0].tokens[0]

    return encoded


def test_weights_that_are_ignored_change_nothing(encode) -> None:  # type: ignore[no-untyped-def]
    weighed, plain = encode("a (pink:1.5) sun"), encode("a (pink:1.0) sun")
    ignored = encode("a (pink:1.5) sun", "Ignore")
    assert torch.allclose(ignored, plain, atol=1e-6)  # by the ratio of two means, which is 1 but for an ulp
    assert not torch.allclose(weighed, plain, atol=1e-2)


def test_without_the_norm_a_vector_is_only_scaled(encode) -> None:  # type: ignore[no-untyped-def]
    plain, scaled = encode("a (pink:1.0) sun"), encode("a (pink:1.5) sun", "No norm")
    torch.testing.assert_close(scaled[2], plain[2] * 1.5)
    assert torch.allclose(scaled[:2], plain[:2], atol=1e-6)  # likewise
    original = encode("a (pink:1.5) sun")
    assert original.mean() == pytest.approx(plain.mean().item(), rel=1e-3)
    assert not torch.allclose(original[1], plain[1], rtol=1e-4)


def test_without_emphasis_brackets_and_breaks_are_text(encode, networks: Model) -> None:  # type: ignore[no-untyped-def]
    text = "a (pink:1.5) sun BREAK sea"
    (chunk,) = chunks([(text, 1.0)], networks.text.towers[0].tokenize)
    expected = networks.text.towers[0].model(input_ids=torch.tensor([chunk.tokens])).last_hidden_state[0]
    assert torch.equal(encode(text, "None"), expected)  # the same tokens through the same code
    assert encode(text).shape[0] == 2 * 77


@pytest.mark.parametrize(
    ("text", "tokens"),
    [  # by OpenAI's tokeniser in transformers 4.30 (the slow one, with ftfy)
        ("\u039f\u0394\u039f\u03a3", [138, 123, 138, 112, 138, 123, 139, 480]),
        ("\u201cna\u00efve\u201d caf\u00e9", [257, 1097, 35689, 563, 257, 15304]),
        ("\U0001f600\U0001f44d\U0001f3fd", [12832, 43722]),
        ("\uff26\uff35\uff2c\uff2c", [1476]),
        ("don\u00e2\u20ac\u2122t", [847, 713]),
        ("\ufb01ne &lt;b&gt;", [3797, 283, 321, 285]),
    ],
)
def test_tokens_are_those_of_webuis_tokeniser(networks: Model, text: str, tokens: list[int]) -> None:
    assert networks.text.towers[0].tokenize(text) == tokens


@pytest.mark.parametrize(
    ("field", "text"),
    [("prompt", "\u6d77" * 10_000), ("negative_prompt", "BREAK " * 65), ("hires_prompt", "x, " * 3000)],
    ids=["rare letters", "BREAK", "long"],
)
def test_a_prompt_of_too_many_chunks_is_refused_before_anything_is_drawn(
    networks: Model, field: str, text: str
) -> None:
    hires, texts = HiresSettings(), {field: text}
    if field.startswith("hires_"):
        hires, texts = HiresSettings(prompt=text), {}
    asked = GenerationRequest(**{"prompt": "a sun", "width": 64, "height": 64, "seed": 1, "hires": hires} | texts)
    with pytest.raises(InvalidInput, match=f"^{field}=.* at most 64 chunks of 75 tokens, this is .*Shorten it"):
        next(render(networks, asked, make_plan(asked)))
