"""Trainings of a few steps: their results are read by our loader and by diffusers', and they go on after a break."""

import inspect
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from safetensors import safe_open
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save_file
from torch import Tensor

import train as cog_training
from pipelines.ask.identity import TOKENIZER, ModelFiles
from pipelines.ask.networks import ExtraFile, LoraTag
from pipelines.ask.plan import HighresPlan
from pipelines.ask.request import GenerationRequest
from pipelines.drawing.phases import FINAL, Picture
from pipelines.errors import InvalidInput, NonFiniteError, OutOfMemory, OutputError
from pipelines.models.embeddings import read_embedding
from pipelines.models.loader import load
from pipelines.models.lora import LoraUse
from pipelines.models.model import Model
from pipelines.runtime import worker
from pipelines.runtime.threads import both
from pipelines.runtime.unet_call import Condition, UNetCall
from pipelines.training import loop, previews, two_threads
from pipelines.training.learner import Learner
from pipelines.training.loop import Drawn, Event, Finished, Job, Looked, Saved, Stepped, train
from pipelines.training.pictures import Opened, opened
from pipelines.training.result import NothingTrained
from pipelines.training.wishes import DREAMBOOTH, INVERSION, LORA, PIVOTAL, Wishes
from script.schema import ROOT
from tests import folders, sd2, sdxl
from tests.torch_threads import torch_threads
from tests.unit.test_archives import zipped
from tests.unit.test_training_pictures import picture
from weights_script.resolve import ResolvedModel


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """Two shapes, and a caption."""
    files = {"a.png": picture((64, 64)), "b.png": picture((96, 64)), "b.txt": b"TOK by the sea, at night"}
    with opened(zipped(tmp_path_factory.mktemp("pictures") / "pictures.zip", files), 64) as found:
        yield found


Start = Callable[..., Job]


@pytest.fixture(scope="module")
def make(embedded: ResolvedModel, pictures: Opened) -> Callable[[Path], Start]:
    """Makes trainings of the embedded model, each in a folder of its own inside the given one."""

    def start(parent: Path, folder: str = "one", resume: Path | None = None, **wishes: Any) -> Job:
        wishes = {"steps": 3, "seed": 5, "gradient_accumulation": 1, "resolution": 64, **wishes}
        return Job(
            pictures=pictures,
            wishes=Wishes(**wishes),
            base="pastel-tiny",
            files=embedded.files,
            settings=embedded.settings,
            folder=parent / folder,
            resume=resume,
        )

    return lambda parent: partial(start, parent)


@pytest.fixture
def job(make: Callable[[Path], Start], tmp_path: Path) -> Start:
    return make(tmp_path)


def finished(job: Job) -> Finished:
    *_, last = train(job)
    assert isinstance(last, Finished)
    return last


def result(job: Job, name: str = "TOK.safetensors") -> Path:
    return job.folder / "result" / name


def told(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result(job, "training.json").read_text())
    return found


def predicted(model: Model, text: str = "TOK", words: Mapping[str, ExtraFile] | None = None) -> Tensor:
    encoded = model.text.encode([text], 1, tables=model.text.embedding_tables(words or {}))
    call = UNetCall(
        torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)),
        torch.tensor(500),
        Condition(encoded.conditions[0].tokens),
    )
    with torch.inference_mode():
        return model.unet(call)


def test_a_lora_has_kohyas_names_its_true_alpha_and_does_what_was_trained(job: Start, networks: Model) -> None:
    trained: list[Tensor] = []

    class Kept(loop._Training):
        def _save(self, stopped: str = "") -> Generator[Event, None, Path]:
            trained.append(predicted(self._model))
            return super()._save(stopped)

    one = job(rank=3, alpha=1.5, layers="all", learning_rate=1e-2, text_learning_rate=1e-2, steps=2, save_every=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_Training", Kept)
        archive = finished(one).archive
    with tarfile.open(archive) as tar:
        assert {"TOK.safetensors", "state.safetensors", "training.json", "report.txt", "loss.csv", "loss.png"} <= set(
            tar.getnames()
        )
        assert {"captions/a.png.txt", "captions/b.png.txt"} <= set(tar.getnames())
    with safe_open(result(one), framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(result(one))
    assert {"lora_unet", "lora_te"} == {"_".join(name.split("_")[:2]) for name in tensors}
    assert tensors["lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha"] == 1.5
    assert tensors["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"].shape[0] == 3
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("3", "1.5")
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["ss_output_name"] == metadata["modelspec.trigger_phrase"] == "TOK"
    assert json.loads(metadata["ss_tag_frequency"]) == {
        "1_TOK": {"a photo of TOK": 1, "TOK by the sea": 1, "at night": 1}
    }

    plain = predicted(networks)
    networks.adapters.apply([LoraUse(ExtraFile.at(result(one)), LoraTag("TOK", 1.0, 1.0))])
    try:
        merged, left_over = predicted(networks), networks.adapters.left_over
    finally:
        networks.adapters.apply([])
    read_by_diffusers, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(str(result(one)))
    assert len(read_by_diffusers) + len(alphas) == len(tensors) == 3 * len(alphas)
    assert set(alphas.values()) == {1.5}
    assert left_over == ()
    change = float((trained[0] - plain).norm())
    assert change > 1e-2
    assert float((merged - trained[0]).norm()) < 0.02 * change  # it is stored in half precision


RESUMED: dict[str, Any] = {"text_learning_rate": 1e-3, "gradient_accumulation": 2, "schedule": "cosine"}


@pytest.fixture(scope="module")
def whole(make: Callable[[Path], Start], tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Path]:
    """A training without a break, and its result as it was after the first step."""
    folder = tmp_path_factory.mktemp("resumed")
    job = make(folder)("whole", save_every=1, **RESUMED)
    with closing(train(job)) as events:
        saved = next(event for event in events if isinstance(event, Saved))
        shutil.copy(saved.archive, first := folder / "first.tar")
        assert isinstance(list(events)[-1], Finished)
    assert saved.step == 1
    return job, first


def test_a_resumed_training_goes_on_exactly(job: Start, whole: tuple[Job, Path]) -> None:
    without_break, first = whole
    rest = job("rest", save_every=2, resume=first, **{**RESUMED, "seed": None})  # it is that of the first
    with closing(train(rest)) as events:  # a cancel leaves the last save
        steps = [
            event.number
            for event in takewhile(lambda event: not isinstance(event, Saved), events)
            if isinstance(event, Stepped)
        ]
        next(events)
    assert steps == [2]
    assert told(rest)["losses"] == told(without_break)["losses"][:2]
    last = job("last", resume=rest.folder / "TOK.tar", **RESUMED)
    assert finished(last).stopped == ""
    assert told(last)["losses"] == told(without_break)["losses"]
    one, other = load_file(result(without_break)), load_file(result(last))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert len(set(told(without_break)["losses"])) == 3


def test_two_threads_learn_the_same(job: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture in one thread, and one of the class in the other."""
    helped: list[str] = []

    def counted(*work: Callable[[], Any]) -> tuple[Any, Any]:
        helped.append(folder)
        return both(*work)

    monkeypatch.setattr(two_threads, "both", counted)
    wishes: dict[str, Any] = {"learning_rate": 1e-3, "text_learning_rate": 1e-3, "steps": 2, "save_every": 9}
    wishes |= {"class_prompt": "a house", "class_images": 2}
    losses = {}
    for count, folder in ((1, "one thread"), (2, "two threads")):
        found = job(folder, **wishes)
        with torch_threads(count):
            assert finished(found).stopped == ""
        losses[folder] = told(found)["losses"]
    assert set(helped) == {"two threads"}
    assert losses["two threads"] == pytest.approx(losses["one thread"], rel=1e-4)


def test_another_training_cannot_be_gone_on_from(job: Start, tmp_path: Path, whole: tuple[Job, Path]) -> None:
    _, archive = whole
    for wishes, said in (
        ({"rank": 8}, "rank=8"),
        ({"text_learning_rate": 0.0}, "text_learning_rate=0.0: the training to resume had 0.001"),
        ({"token": "CAT"}, "had 'TOK'"),
        ({"steps": 1}, "has 1 steps already"),
    ):
        with pytest.raises(InvalidInput, match=said):
            next(train(job("other", resume=archive, **{**RESUMED, **wishes})))
    (tmp_path / "no").write_bytes(b"no")
    with pytest.raises(InvalidInput, match="is no result of a training"):
        next(train(job("other", resume=tmp_path / "no")))
    one = job("other", resume=_changed(archive, tmp_path / "based", {"base_sha256": "0" * 64}), **RESUMED)
    with pytest.raises(InvalidInput, match="the training to resume had pastel-tiny, which has other weights"):
        next(train(one))  # before anything is drawn or encoded


def _changed(
    archive: Path, folder: Path, settings: dict[str, Any], state: dict[str, Tensor | None] | None = None
) -> Path:
    """Write a result with other settings, and other tensors in its state; None: without this one."""
    folder.mkdir()
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    told = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps({**told, **settings}))
    tensors = {**load_file(folder / loop.result.STATE), **(state or {})}
    save_file({name: each for name, each in tensors.items() if each is not None}, folder / loop.result.STATE)
    return loop.result.pack(folder, folder.with_suffix(".tar"))


def test_a_broken_result_is_refused(job: Start, tmp_path: Path, whole: tuple[Job, Path]) -> None:
    _, archive = whole
    for number, settings in enumerate(({"step": float("inf")}, {"losses": [10**400]}, {"step": -1})):
        with pytest.raises(InvalidInput, match="Send the whole result"):
            next(train(job("other", resume=_changed(archive, tmp_path / f"settings{number}", settings), **RESUMED)))
    with tarfile.open(archive) as tar, tar.extractfile(loop.result.STATE) as file:  # type: ignore[union-attr]
        names = list(load_bytes(file.read()))
    steps, squares = (next(name for name in names if name.startswith(f"{key}.")) for key in ("step", "exp_avg_sq"))
    for number, state in enumerate(({squares: None}, {steps: torch.ones(3)}, {steps: torch.tensor(-1.0)})):
        broken = _changed(archive, tmp_path / f"state{number}", {}, state)
        with pytest.raises(InvalidInput, match=r"what the optimizer remembers of .* is not whole"):
            finished(job("other", resume=broken, **RESUMED))


def test_a_preview_that_cannot_be_drawn_costs_nothing_else(
    job: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = previews.render

    def render(model: Model, request: GenerationRequest, plan: HighresPlan) -> Iterator[Any]:
        if "broken" in request.prompt:
            raise OutOfMemory("There is not enough memory.")
        return plain(model, request, plan)

    monkeypatch.setattr(previews, "render", render)
    one = job(steps=1, preview_prompts="a broken TOK\na TOK")
    assert finished(one).stopped == ""
    assert tarfile.is_tarfile(one.folder / "TOK.tar")
    assert "No picture of 'a broken TOK': There is not enough memory." in caplog.text
    assert len(list((one.folder / "result" / "previews").iterdir())) == 1


def test_a_training_begins_after_a_cancelled_one_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_settings: None
) -> None:
    """A step may take longer than a cancel waits."""
    plain, slow, order = Learner.forward, iter([True]), list[str]()

    def forward(*args: Any) -> Any:
        if next(slow, False):
            signal.raise_signal(signal.SIGALRM)  # whose handler runs in the main thread, which waits
            time.sleep(worker.PATIENCE_SECONDS + 1.5)
        return plain(*args)

    def run(job: Job) -> Generator[Event]:
        order.append("begins")
        try:
            yield from train(job)
        finally:
            order.append("ends")

    class Cancelled(BaseException):
        pass

    def cancel(*_: object) -> None:
        raise Cancelled

    monkeypatch.setattr(Learner, "forward", forward)
    monkeypatch.setattr(cog_training, "run", run)
    monkeypatch.setenv(cog_training.FOLDER_SETTING, str(tmp_path / "trainings"))
    archive = zipped(tmp_path / "pictures.zip", {"a.png": picture((64, 64))})
    inputs = {name: each.default.default for name, each in inspect.signature(cog_training.train).parameters.items()}
    inputs |= {"input_images": archive, "steps": 3, "resolution": 64, "seed": 1, "save_every": 9}
    monkeypatch.setattr(cog_training, "current_scope", lambda: SimpleNamespace(record_metric=lambda *_: None))
    before = signal.signal(signal.SIGALRM, cancel)
    try:
        with pytest.raises(Cancelled):
            cog_training.train(**inputs)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert tarfile.is_tarfile(cog_training.train(**inputs).weights)
    assert order == ["begins", "ends"] * 2


def test_pivotal_tuning_puts_the_word_inside_the_lora(job: Start, networks: Model) -> None:
    """Also by itself, for programs that do not look for it there, such as diffusers."""
    lessons = {"class_prompt": "house\na tree", "preview_prompts": "a TOK house", "text_learning_rate": 1e-2}
    one = job(task=PIVOTAL, rank=2, steps=2, **lessons)
    finished(replace(one, settings={**one.settings, "num_inference_steps": 2}))
    tower = networks.text.towers[0]
    word = read_embedding(ExtraFile.at(result(one)), tower.width, bundled="TOK")
    assert torch.equal(word, read_embedding(ExtraFile.at(result(one, "word.safetensors")), tower.width))
    start = tower.model.get_input_embeddings().weight[tower.tokenize("house")]
    assert word.shape == (2, tower.width)
    assert 5e-3 < float((word - start).abs().max()) < 2.1e-2, "two steps of AdamW at the word's rate, from a house"
    assert result(one, "previews/1-step-000002.png").exists()
    tensors = load_file(result(one))
    lora = {name: tensor for name, tensor in tensors.items() if not name.startswith("bundle_emb.")}
    assert len(tensors) == len(lora) + 1
    _, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(dict(lora))
    assert 3 * len(alphas) == len(lora)
    assert not any("lora_te" in name for name in lora)


def test_an_embedding_is_read_by_its_word(job: Start, networks: Model) -> None:
    prompts = "a TOK house <lora:TOK:1>\na tree"
    one = job(task=INVERSION, rank=2, class_prompt="house", preview_prompts=prompts, steps=2)
    finished(replace(one, settings={**one.settings, "num_inference_steps": 2}))
    names = {path.name for path in (one.folder / "result" / "previews").iterdir()}
    assert names == {f"{number}-step-00000{step}.png" for number in (1, 2) for step in (1, 2)}
    assert list(load_file(result(one))) == ["TOK"]  # diffusers takes the only tensor's name as the word
    vectors = read_embedding(ExtraFile.at(result(one)), networks.text.towers[0].width)
    start = networks.text.towers[0].model.get_input_embeddings().weight[networks.text.towers[0].tokenize("house")]
    assert vectors.shape == (2, start.shape[1])
    assert 0 < float((vectors - start).abs().max()) < 0.1


PREVIEW = Drawn("previews", 1, 1)


def test_a_checkpoint_loads_as_one(job: Start, embedded: ResolvedModel, networks: Model) -> None:
    wishes: dict[str, Any] = {"class_prompt": "a house", "class_images": 2, "preview_prompts": "a TOK"}
    one = job(task=DREAMBOOTH, learning_rate=1e-3, steps=1, rank=3, **wishes)
    events = list(train(replace(one, settings={**one.settings, "num_inference_steps": 2})))
    pictures_drawn = [event for event in events if isinstance(event, Drawn)]
    assert pictures_drawn == [Drawn("pictures of the class", 1, 2), Drawn("pictures of the class", 2, 2), PREVIEW]
    (looked,) = (event for event in events if isinstance(event, Looked))
    assert looked.report.startswith("DreamBooth trains whole networks, so rank does nothing.\n")
    assert result(one, "report.txt").read_text() == looked.report
    model = load(replace(embedded.files, checkpoint=result(one)))
    assert float((predicted(model) - predicted(networks)).abs().max()) > 1e-3
    assert torch.equal(
        model.text.towers[0].model.state_dict()["final_layer_norm.weight"].half(),
        networks.text.towers[0].model.state_dict()["final_layer_norm.weight"].half(),
    )


def test_the_rows_of_dreambooths_token_have_a_rate_of_their_own(
    job: Start, embedded: ResolvedModel, networks: Model
) -> None:
    """All programs read them from the checkpoint: they stand in the table. What the class shares is left alone."""
    tower, token, rate = networks.text.towers[0], "my-house-zx", 1e-2
    own = [number for number in tower.tokenize(token) if number not in tower.tokenize("a house")]
    assert 3 < len(own) < len(tower.tokenize(token))
    one = job(
        task=DREAMBOOTH,
        token=token,
        class_prompt="a house",
        text_learning_rate=1e-5,
        word_learning_rate=rate,
        steps=2,
    )
    learners: list[Learner] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Learner", lambda *given: learners.append(Learner(*given)) or learners[0])
        finished(one)
    model = load(replace(embedded.files, checkpoint=result(one, f"{token}.safetensors")))
    before, after = (each.text.towers[0].model.get_input_embeddings().weight.detach() for each in (networks, model))
    moved = (after - before).abs().amax(1)
    assert 0.5 * rate < float(moved[own].min()), "two steps of AdamW"
    assert float(moved[own].max()) < 2.1 * rate
    moved[own] = 0
    assert float(moved.max()) < 1e-4, "the encoder's rate, and rounding to half precision"
    text = f"a {token} and another {token}, zx"
    with torch.no_grad():
        learned = learners[0].encode([text]).tokens
    assert torch.allclose(learned, model.text.encode([text], 1).conditions[0].tokens, atol=0.02), "as it was trained"
    assert not torch.allclose(learned, networks.text.encode([text], 1).conditions[0].tokens, atol=0.1)


def test_diffusers_reads_every_result(job: Start, networks: Model, tmp_path: Path) -> None:
    """It has its own pipelines, loaders and peft, and runs in a process of its own."""
    text, quick = "a TOK by the sea", {"steps": 2, "learning_rate": 1e-2, "save_every": 9}
    wishes: dict[str, dict[str, Any]] = {
        LORA: {"rank": 3, "alpha": 1.5, "layers": "all", "text_learning_rate": 1e-2},
        DREAMBOOTH: {"learning_rate": 1e-3, "text_learning_rate": 1e-4, "word_learning_rate": 1e-2},
        INVERSION: {"rank": 2, "learning_rate": 1e-1},
        PIVOTAL: {"rank": 3, "text_learning_rate": 1e-1},
    }
    jobs = {task: job(task, task=task, **{**quick, **own}) for task, own in wishes.items()}
    for each in jobs.values():
        finished(each)
    ours = {"plain": predicted(networks, text)} | {task: by_us(networks, task, each) for task, each in jobs.items()}
    out = tmp_path / "theirs.safetensors"
    parts = folders.save(networks, tmp_path / "parts")
    results = [f"{task}={result(each)}" for task, each in jobs.items()]
    program = [sys.executable, "tests/in_diffusers.py", str(parts), str(TOKENIZER), text, str(out), *results]
    subprocess.run(program, cwd=ROOT, check=True)
    theirs = load_file(out)
    assert theirs.keys() == ours.keys()
    for task in ours:
        change = float((ours[task] - ours["plain"]).norm())
        assert float((theirs[task] - ours[task]).norm()) < max(0.01 * change, 1e-3), task
        assert change > 0.1 or task == "plain"


def by_us(networks: Model, task: str, trained: Job) -> Tensor:
    """Return what our UNet predicts with a training's result."""
    file = ExtraFile.at(result(trained))
    if task == DREAMBOOTH:
        networks = load(replace(trained.files, checkpoint=file.path))
    networks.adapters.apply([LoraUse(file, LoraTag("TOK", 1.0, 1.0))] if task in (LORA, PIVOTAL) else [])
    word = ExtraFile.at(result(trained, "word.safetensors" if task == PIVOTAL else "TOK.safetensors"))
    try:
        return predicted(networks, "a TOK by the sea", {"TOK": word} if task in (INVERSION, PIVOTAL) else {})
    finally:
        networks.adapters.apply([])


def test_a_loss_that_is_not_finite_stops_with_the_last_good_state(job: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    count = iter(range(100))
    monkeypatch.setattr(
        loop.Loss, "weights", lambda self, times: torch.tensor([float("nan") if next(count) == 2 else 1.0])
    )
    one = job(learning_rate=1e-2, save_every=9)
    last = finished(one)
    assert "loss of step 3 was not finite" in last.stopped
    assert told(one)["step"] == len(told(one)["losses"]) == 2
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(result(one)).values())

    monkeypatch.setattr(loop.Loss, "weights", lambda self, times: torch.tensor([float("nan")]))
    with pytest.raises(NothingTrained):
        finished(job("nothing"))


def test_an_archive_holds_nothing_of_an_earlier_training_in_its_folder(job: Start) -> None:
    for token in ("CAT", "TOK"):
        archive = finished(job("same", token=token, steps=1)).archive
    with tarfile.open(archive) as tar:
        assert [name for name in tar.getnames() if "CAT" in name] == []
    assert (archive.parent / "CAT.tar").exists()


def test_a_class_picture_that_is_not_finite_is_missed_aloud(
    job: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those after it, which were drawn together with it, are drawn again."""
    draw = previews.render

    def failing_once(model: Model, request: GenerationRequest, plan: HighresPlan) -> Iterator[Any]:
        for event in draw(model, request, plan):
            if isinstance(event, Picture) and event.kind == FINAL and event.index == request.num_outputs - 2:
                raise NonFiniteError("NaN")
            yield event

    monkeypatch.setattr(previews, "render", failing_once)
    one = job(class_prompt="a house", class_images=3, steps=1)
    events = list(train(replace(one, settings={**one.settings, "num_inference_steps": 1})))
    assert [event.number for event in events if isinstance(event, Drawn)] == [1, 2]
    assert caplog.text.count("No picture of 'a house': NaN") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="each process needs a GPU of its own")
@pytest.mark.usefixtures("no_settings")
def test_two_processes_train_as_one_that_accumulates(job: Start, tmp_path: Path) -> None:
    """They agree on a seed, draw their own batches, and only one of them tells what they do."""
    files = {"a.png": picture((64, 64)), "b.png": picture((96, 64)), "c.png": picture((64, 96))}
    archive = zipped(tmp_path / "three.zip", files)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "script.train"]
    wanted = ["--steps", "2", "--resolution", "64", "--learning-rate", "1e-2"]
    program = [sys.executable, *launch, str(archive), "-o", str(tmp_path / "two"), *wanted]
    ran = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Plan: ") == 1
    two = json.loads((tmp_path / "two" / "result" / "training.json").read_text())
    with opened(archive, 64) as found:
        wishes = {"seed": two["settings"]["seed"], "gradient_accumulation": 2, "learning_rate": 1e-2, "steps": 2}
        one = replace(job("alone", **wishes), pictures=found)
        finished(one)
    assert told(one)["losses"] == pytest.approx(two["losses"], rel=1e-4), "the order of additions differs"
    theirs, ours = (load_file(folder / "result" / "TOK.safetensors") for folder in (tmp_path / "two", one.folder))
    moved = max(float(tensor.abs().max()) for name, tensor in ours.items() if "lora_up" in name)
    assert moved > 1e-2
    # AdamW's first steps are signs of gradients, of which a few are so near to 0 that the order of additions decides.
    apart = torch.cat([(theirs[name] - tensor).abs().flatten() for name, tensor in ours.items() if "lora_up" in name])
    assert float((apart > 1e-3).float().mean()) < 0.01


def test_a_disk_that_is_full_leaves_the_last_save(job: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, count = loop.result.pack, iter(range(2))

    def pack(folder: Path, archive: Path) -> Path:
        if next(count):
            raise OSError(28, "No space left on device")
        return plain(folder, archive)

    monkeypatch.setattr(loop.result, "pack", pack)
    one = job(steps=2, save_every=1)
    with pytest.raises(OutputError, match=r"No space left on device\. Free some space there"):
        finished(one)
    assert tarfile.is_tarfile(one.folder / "TOK.tar")


def test_a_training_that_needs_too_much_memory_says_what_to_lower(job: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Learner, "forward", refused)
    with pytest.raises(OutOfMemory, match="Lower batch_size"):
        finished(job())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in it")
def test_a_precision_that_the_device_lacks_is_refused(job: Start) -> None:
    with pytest.raises(InvalidInput, match="precision='fp16': needs a GPU"):
        next(train(job(precision="fp16")))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFiles]:
    """Small models of the other families."""
    folder = tmp_path_factory.mktemp("families")
    paths = {
        "v": sdxl.single_file(folder / "v.safetensors", sdxl.networks(), v_pred=torch.zeros(0), ztsnr=torch.zeros(0)),
        "SD 2": sd2.single_file(folder / "sd2.safetensors", sd2.networks(v=True)),
    }
    return {name: ModelFiles(name=name, checkpoint=path, vae=None) for name, path in paths.items()}


def test_a_model_for_inpainting_is_refused(job: Start, tmp_path: Path) -> None:
    path = sd2.single_file(tmp_path / "inpainting.safetensors", sd2.networks(channels=9))
    files = ModelFiles(name="inpainting", checkpoint=path, vae=None)
    with pytest.raises(InvalidInput, match="model='pastel-tiny': cannot be trained: its UNet takes 9 channels"):
        next(train(replace(job(), files=files, settings={"width": 64, "height": 64})))


@pytest.mark.parametrize("name", ["v", "SD 2"])
def test_other_families(job: Start, small: dict[str, ModelFiles], name: str) -> None:
    files = small[name]
    own = {"files": files, "settings": {"width": 64, "height": 64}}
    one = replace(job(text_learning_rate=1e-3, steps=1), **own)
    finished(one)
    tensors = load_file(result(one))
    te = {"lora_te1", "lora_te2"} if name != "SD 2" else {"lora_te"}
    assert {each.split("_text_model")[0] for each in tensors if each.startswith("lora_te")} == te
    assert any("input_blocks" in each for each in tensors) == (name != "SD 2")
    model = load(files)
    model.adapters.apply([LoraUse(ExtraFile.at(result(one)), LoraTag("TOK", 1.0, 1.0))])
    assert model.adapters.left_over == ()

    if name == "v":
        word = replace(job("word", task=INVERSION, steps=1), **own)
        finished(word)
        assert set(load_file(result(word))) == {"clip_l", "clip_g"}

    whole = replace(job("whole", task=DREAMBOOTH, steps=1), **own)
    finished(whole)
    again = load(replace(files, checkpoint=result(whole)))
    assert again.prediction == model.prediction
    assert again.noise.alphas[-1] == model.noise.alphas[-1]
