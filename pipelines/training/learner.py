"""What is trained: layers of a LoRA, vectors of an embedding, or whole networks, behind one module.

peft makes the layers of a LoRA. A multi-GPU run wraps this one module, so everything that is trained is below it.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipelines.families.layouts import unet_layout
from pipelines.models.build import text_model
from pipelines.models.model import Model
from pipelines.runtime.unet_call import Condition
from pipelines.training.settings import Course
from pipelines.training.two_threads import Call, compute, fits
from pipelines.training.wishes import DREAMBOOTH, INVERSION, LAYERS, LORA, PIVOTAL
from pipelines.training.words import TrainedRows, TrainedTable, meaning, own_pieces

for _name in ("accelerate", "peft"):  # hidden from diffusers at start-up: pipelines/__init__.py
    if sys.modules.get(_name, ...) is None:
        del sys.modules[_name]

from peft import LoraConfig, inject_adapter_in_model  # noqa: E402
from peft.tuners.lora import LoraLayer  # noqa: E402

ADAPTER = "trained"
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""Layers of text encoders that a LoRA changes. WebUI leaves out OpenCLIP's attentions unless all four are there."""


@dataclass(frozen=True)
class NoisyBatch:
    """Noisy latents, and what the networks are told about them."""

    latents: Tensor
    """(B, 4, h, w)"""
    times: Tensor
    """(B,)"""
    captions: Sequence[str]
    encoded: Condition | None
    """The encoded captions; None: encode them now."""
    sizes: Tensor | None
    """(B, k): follow the pooled text, in families that are told about a picture's size."""


class Learner(nn.Module):
    """A model in training. Calling it predicts noise or v for batches."""

    def __init__(self, model: Model, course: Course) -> None:
        """Prepare the model's networks, in place. Everything that is not trained is frozen."""
        super().__init__()
        self._model, self._course = model, course
        self.unet = model.unet.network
        self.texts = nn.ModuleList([tower.network for tower in model.text.towers])
        self.vectors = nn.ParameterList()
        self.rows = nn.ModuleList()
        for network in (self.unet, model.vae.network, *self.texts):
            network.requires_grad_(False)
        parts = {
            LORA: (self._add_lora,),
            PIVOTAL: (self._add_lora, self._add_vectors),
            INVERSION: (self._add_vectors,),
            DREAMBOOTH: (self._free, self._add_rows),
        }
        for add in parts[course.task]:
            add()
        self._in_threads = fits(self.unet)

    @property
    def reads_text(self) -> bool:
        """Whether captions are encoded anew for each batch, because something in the text encoders is trained."""
        return bool(self.vectors or self.rows or self._course.text_learning_rate)

    def groups(self) -> list[dict[str, object]]:
        """Return the trained parameters and their learning rates, as torch's optimizers take them."""
        course = self._course
        groups = (
            (_trained_in(self.unet), course.learning_rate),
            (_trained_in(self.texts), course.text_learning_rate),
            ([*self.vectors, *self.rows.parameters()], course.word_learning_rate),
        )
        return [{"params": parameters, "lr": rate, "initial_lr": rate} for parameters, rate in groups if parameters]

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name."""
        return {name: each for name, each in self.named_parameters() if each.requires_grad}

    def forward(self, batches: Sequence[NoisyBatch]) -> list[Tensor]:
        """Predict noise or v (B, 4, h, w) for each batch."""
        calls = [self._call(each) for each in batches]
        if not self._in_threads:
            return [self._predicted(*call) for call in calls]
        return compute(self._predicted, _trained_in(self.unet), calls)

    def _call(self, batch: NoisyBatch) -> Call:
        condition = self.encode(batch.captions) if batch.encoded is None else batch.encoded
        if condition.vector is None:
            return batch.latents, batch.times, condition.tokens
        vector = condition.vector if batch.sizes is None else torch.cat([condition.vector, batch.sizes], 1)
        return batch.latents, batch.times, condition.tokens, vector

    def _predicted(self, latents: Tensor, times: Tensor, tokens: Tensor, vector: Tensor | None = None) -> Tensor:
        options = {} if vector is None else {"class_labels": vector}
        predicted: Tensor = self.unet(latents, times, encoder_hidden_states=tokens, return_dict=False, **options)[0]
        return predicted

    def encode(self, captions: Sequence[str]) -> Condition:
        """Encode captions as plain text, without WebUI's syntax: a row for each."""
        tables = [
            TrainedTable(self._course.token, vectors, tower.tokenize)
            for vectors, tower in zip(self.vectors, self._model.text.towers, strict=False)
        ]
        text = self._model.text
        return Condition.cat(text.encode(captions, self._course.clip_skip, "None", "caption", tables).conditions)

    def lora(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield the layers of a LoRA: Kohya's name, down and up."""
        model, sdxl = self._model, len(self.texts) > 1
        to_ldm = unet_layout(self.unet.config.down_block_types).to_ldm
        for name, layer in _layers(self.unet):
            # Kohya's scripts keep the names of the program that a family came from: diffusers', or SDXL's own.
            yield f"lora_unet_{_flat(to_ldm(name) if sdxl else name)}", *_sides(layer)
        for tower in model.text.towers:
            for name, layer in _layers(tower.model):
                yield f"{tower.spec.lora_prefixes[0]}{_flat(name)}", *_sides(layer)

    def _add_lora(self) -> None:
        course = self._course
        if course.learning_rate:
            self._inject(self.unet, LAYERS[course.layers], course.random("lora"))
        if course.text_learning_rate:
            for number, network in enumerate(self.texts):
                self._inject(text_model(network), TEXT_LAYERS, course.random("lora", number))

    def _inject(self, network: nn.Module, layers: Sequence[str], seed: int) -> None:
        config = LoraConfig(
            r=self._course.rank,
            lora_alpha=self._course.alpha,
            init_lora_weights="gaussian",
            target_modules=[name for name, _ in network.named_modules() if name.endswith(tuple(layers))],
        )
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, network, ADAPTER)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def _add_vectors(self) -> None:
        """Start a word from the mean vector of what it shall begin as, or else of its own letters."""
        for tower in self._model.text.towers:
            start = meaning(tower, self._course.word_start or self._course.token)
            self.vectors.append(nn.Parameter(start.repeat(self._course.vectors, 1)))

    def _free(self) -> None:
        """Train whole networks."""
        self.unet.requires_grad_(bool(self._course.learning_rate))
        self.texts.requires_grad_(bool(self._course.text_learning_rate))

    def _add_rows(self) -> None:
        """Train the rows of the token at a rate of their own, but for those that it shares with what it is in general.

        They go on from what they are, unless they shall begin as something else.
        """
        course = self._course
        for tower in self._model.text.towers if course.word_learning_rate else ():
            if own := own_pieces(tower.tokenize, course.token, course.class_prompts):
                start = meaning(tower, course.word_start) if course.word_start else None
                self.rows.append(TrainedRows(tower.model.get_input_embeddings(), own, start))

    def store_rows(self) -> None:
        """Write the token's rows into the text encoders, which are complete then."""
        for each in self.rows:
            assert isinstance(each, TrainedRows)
            each.store()


def _trained_in(network: nn.Module) -> list[nn.Parameter]:
    return [each for each in network.parameters() if each.requires_grad]


def _layers(network: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _sides(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    return layer.lora_A[ADAPTER].weight.detach(), layer.lora_B[ADAPTER].weight.detach()


def _flat(name: str) -> str:
    return name.replace(".", "_")
