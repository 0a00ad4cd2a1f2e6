"""Text: a tiny encoder built here, its tokenizer beside the file, and what is said of texts it cannot read."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from edgesmith.compressor import auditing, pipeline, task_file
from edgesmith.compressor.candidate import Candidate, state_of
from edgesmith.compressor.export import Export
from edgesmith.compressor.job import prepare
from edgesmith.compressor.learning.layer_groups import layer_groups
from edgesmith.compressor.progress import Progress
from edgesmith.compressor.run_directory import RunDirectory
from edgesmith.compressor.text import TextEncoder, TextsCutWarning
from edgesmith.core.errors import DataError, EdgesmithError, TaskError
from edgesmith.core.task import ArraySplit, Task
from edgesmith.exporters.sessions.ort_session import OnnxRuntimeSession

from .conftest import make_context
from .tiny_encoder import WORDS, write_encoder

TEXTS = ["a good film", "a very bad film", "good", "not a good film", "bad", "a film"]
LABELS = np.array([1, 0, 1, 0, 0, 1])


class Bag(torch.nn.Module):
    """A bag of words: enough of a model where it is not the model that is tested."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(len(WORDS), 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return (self.words(input_ids) * attention_mask.unsqueeze(-1)).sum(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny-bert")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return TextEncoder.open(folder, tokens=8)


@pytest.fixture(scope="module")
def reviews(encoder: TextEncoder) -> Task:
    split = ArraySplit(encoder.encode(TEXTS), LABELS)
    return Task(
        name="reviews",
        model=encoder.classifier(2),
        load_weights=encoder.load_weights,
        train=split,
        validation=split,
        test=split,
        outputs=("logits",),
        dynamic_axes=encoder.dynamic_axes(),
        files=encoder.files(),
    )


@pytest.fixture(scope="module")
def candidate(reviews: Task, encoder: TextEncoder) -> Candidate:
    torch.manual_seed(0)
    module = reviews.model()  # type: ignore[operator]  # a factory
    encoder.load_weights(module)
    example = {name: torch.tensor(array[:2]) for name, array in reviews.test.batch(np.arange(2))[0].items()}
    return Candidate(factory=reviews.model, example=example, edits=(), weights=state_of(module))  # type: ignore[arg-type]


def test_texts_become_ids_and_a_mask(encoder: TextEncoder) -> None:
    found = encoder.encode(["a good film", "a strange film"])
    assert found["input_ids"].tolist() == [[2, 8, 4, 6, 3, 0, 0, 0], [2, 8, 1, 6, 3, 0, 0, 0]]
    assert found["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]] * 2
    assert found["input_ids"].dtype == np.int64


def test_an_audit_makes_typing_errors_in_a_tasks_texts(reviews: Task, encoder: TextEncoder) -> None:
    task = dataclasses.replace(reviews, texts=TEXTS, encode=encoder.encode)
    change, indices = auditing.changes(task)["missing-letters"], np.array([0, 1, 3])
    clean = task.test.batch(indices)[0]
    for severity in (0, 5):
        found = change(indices, severity)
        assert {name: array.shape for name, array in found.items()} == dict.fromkeys(clean, (3, 8))
        struck = (found["input_ids"] != clean["input_ids"]).sum()
        assert struck == (found["input_ids"] == 1).sum(), "a word with a letter missing is unknown to this tokenizer"
        assert (struck > 0) == (severity == 5)
    with pytest.raises(TaskError) as caught:
        for index in (2, 4):  # "good" and "bad" alone
            for kind in ("swapped-letters", "missing-letters", "wrong-letters"):
                auditing.changes(task)[kind](np.array([index]), 5)
    assert str(caught.value).startswith("task 'reviews': texts with typing errors (")
    assert str(caught.value).endswith("; set no texts= to audit without them")


def test_a_task_is_the_same_whatever_else_of_this_package_is_loaded(
    reviews: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run is opened by commands that load other parts than `compress` did."""
    before = task_file.identity(reviews)
    monkeypatch.delitem(sys.modules, "edgesmith.compressor.pipeline")
    assert task_file.identity(reviews) == before


def test_a_text_that_is_too_long_is_cut_and_keeps_its_end_token(encoder: TextEncoder) -> None:
    with pytest.warns(TextsCutWarning, match="^1 of 2 texts are longer than 8 tokens and are cut$"):
        found = encoder.encode(["very " * 30 + "good", "good"])
    assert found["input_ids"].tolist() == [[2, 7, 7, 7, 7, 7, 7, 3], [2, 4, 3, 0, 0, 0, 0, 0]]


LETTERS = "абвгдежзийклмнопрстуфхцчшщъыьэюя"


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_single_letters_of_a_script_are_no_words_of_it(kind: str, folder: Path, tmp_path: Path) -> None:
    """English vocabularies hold the Russian alphabet, and so "know" every Russian word letter by letter."""
    place = tmp_path / "letters"
    shutil.copytree(folder, place)
    words = [*WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS), "."]
    if kind == "wordpiece":
        model = models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    else:
        model = models.Unigram([(word, -1.0) for word in words], unk_id=1)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(place / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "vocab_size": len(words)}))
    encoder = TextEncoder.open(place, tokens=12)
    encoder.encode(["a good film", "a good фильм"])  # a foreign word among others
    for text, script in (
        ("хороший фильм", "Cyrillic"),
        ("ፊልሙ በጣም ጥሩ .", "Ethiopic"),
        ("良い映画 a", "Chinese characters"),
    ):
        with pytest.raises(DataError) as caught:
            encoder.encode(["good", text])
        assert str(caught.value) == (
            f"text 1 ('{text}') is written in {script}, of which the tokenizer of letters has no words; leave such texts out, "
            "or take a model for their language"
        )
    with pytest.raises(
        DataError, match=r" has no words; so are 11 more .2, 3, 4, 5, 6, 7, 8, 9, 10, 11, \.\.\..; leave "
    ):
        encoder.encode(["good", *["хороший фильм"] * 12])
    wide = "".join(chr(0xFEE0 + ord(letter)) for letter in "GOOD")
    encoder.encode([f"{wide} good", "film (ツ)"])  # letters of full width, and an emoticon
    with pytest.raises(
        DataError, match=r"^text 0 .'1234 567'. has no token that the tokenizer of letters knows; leave"
    ):
        encoder.encode(["1234 567"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text 1 is empty (''); leave it out, with its label"),
        (" \n", "text 1 is empty (' \\n'); leave it out, with its label"),
        ("хороший фильм", "text 1 ('хороший фильм') is written in Cyrillic, of which the tokenizer of tiny-bert has no words; leave such texts out, or take a model for their language"),
        ("12 345", "text 1 ('12 345') has no token that the tokenizer of tiny-bert knows; leave it out, or take a model for its language"),
    ],
)  # fmt: skip
def test_a_text_that_says_nothing_is_named(text: str, message: str, encoder: TextEncoder) -> None:
    with pytest.raises(DataError) as caught:
        encoder.encode(["good", text, "bad"])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("good", "one text ('good') where a list of texts is wanted: give [text]"),
        (["good", None], "text 1 is no text but None (NoneType); leave it out, with its label"),
        (["good", float("nan")], "text 1 is no text but nan (float); leave it out, with its label"),
        ([("good", "bad")], "text 0 is no text but ('good', 'bad') (tuple); leave it out, with its label"),
        (["good \ud83d"], "text 0 ('good \\ud83d') holds half of a UTF-16 pair, which is no character; text.encode(errors=\"replace\").decode() puts a question mark in its place"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_named(texts: list[str], message: str, encoder: TextEncoder) -> None:
    with pytest.raises(DataError) as caught:
        encoder.encode(texts)
    assert str(caught.value) == message


def test_no_texts_are_no_rows(encoder: TextEncoder) -> None:
    assert [array.shape for array in encoder.encode([]).values()] == [(0, 8), (0, 8)]
    assert encoder.encode(list(np.array(["good", "a film"])))["input_ids"].shape == (2, 8)


def test_many_texts_are_encoded_in_parts(encoder: TextEncoder) -> None:
    """A tokenizer says all of a long text, which for many at once fills the memory."""
    once, texts = encoder.encode(TEXTS), TEXTS * 50
    for name, array in encoder.encode(texts).items():
        np.testing.assert_array_equal(array, np.tile(once[name], (50, 1)))
    with pytest.raises(DataError, match=r"^text 300 is empty \(''\); leave it out, with its label$"):
        encoder.encode([*texts, ""])
    with pytest.warns(TextsCutWarning, match="^2 of 302 texts are longer than 8 tokens and are cut$"):
        encoder.encode(["very " * 30, *texts, "very " * 1000])


def test_padding_has_no_part_in_the_answer(candidate: Candidate, folder: Path) -> None:
    module = candidate.module()
    answers = []
    for tokens in (6, 12):
        inputs = TextEncoder.open(folder, tokens=tokens).encode(TEXTS)
        with torch.no_grad():
            answers.append(module(*(torch.tensor(array) for array in inputs.values())))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-5, atol=1e-6)


def test_weights_are_the_encoders(candidate: Candidate, folder: Path) -> None:
    from transformers import AutoModel

    trained = AutoModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(candidate.weights[f"encoder.{name}"], tensor) for name, tensor in trained.items())


def test_layer_groups_of_an_encoder(candidate: Candidate) -> None:
    groups = layer_groups(candidate.module(), candidate.example, ("logits",))
    used = [group for group in groups if not group[0].startswith("encoder.pooler")]
    assert [{".".join(name.split(".")[: 4 if ".layer." in name else 2]) for name in group} for group in used] == [
        {"encoder.embeddings"},
        {"encoder.encoder.layer.0"},
        {"encoder.encoder.layer.1"},
        {"head.weight", "head.bias"},
    ]


def test_the_file_takes_texts_of_every_length(
    candidate: Candidate, reviews: Task, folder: Path, tmp_path: Path
) -> None:
    graph = Export(id="e").run(candidate, make_context(reviews, tmp_path / "work", {}))
    session = OnnxRuntimeSession(graph.path)
    assert [spec.shape for spec in session.inputs] == [("batch", "tokens")] * 2
    for tokens in (6, 12):
        inputs = TextEncoder.open(folder, tokens=tokens).encode(TEXTS[:3])
        with torch.no_grad():
            expected = candidate.module()(*(torch.tensor(array) for array in inputs.values()))
        np.testing.assert_allclose(session.run(inputs)["logits"], expected.numpy(), rtol=1e-4, atol=1e-5)
    session.close()


def test_a_length_that_forward_fixes_is_said(candidate: Candidate, reviews: Task, tmp_path: Path) -> None:
    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(8, 2)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.head((input_ids * attention_mask).float())

    fixed = dataclasses.replace(candidate, factory=Fixed, weights=state_of(Fixed()))
    with pytest.raises(EdgesmithError) as caught:
        Export(id="e").run(fixed, make_context(reviews, tmp_path / "work", {}))
    assert "tokens" in str(caught.value)


def test_the_tokenizer_stands_beside_the_artefact(reviews: Task, folder: Path, tmp_path: Path) -> None:
    recipe = {"task": "task.py", "stages": [{"use": "export"}], "limits": {"file_ratio": 2.0}}
    directory = RunDirectory(tmp_path / "run")
    bag = dataclasses.replace(reviews, model=Bag, load_weights=None)
    with directory.open():
        run = pipeline._Run(prepare(recipe, bag, out=tmp_path / "run"), directory, Progress())
        run._load_original()
        for place in ("artifacts", "measurements"):  # of the two, one is deployed
            run._write(f"{place}/onnxruntime-cpu", "original", "onnxruntime-cpu")
    beside = tmp_path / "run" / "artifacts" / "onnxruntime-cpu"
    assert (beside / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert (beside / "model.onnx").exists()
    assert not (tmp_path / "run" / "measurements" / "onnxruntime-cpu" / "tokenizer.json").exists()


def test_another_tokenizer_is_another_run(reviews: Task, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer.json"
    shutil.copyfile(folder / "tokenizer.json", other)
    assert task_file.identity(dataclasses.replace(reviews, files=(other,))) == task_file.identity(reviews)
    other.write_text(other.read_text() + "\n")
    assert task_file.identity(dataclasses.replace(reviews, files=(other,))) != task_file.identity(reviews)
    with pytest.raises(TaskError) as caught:
        task_file.check_data(dataclasses.replace(reviews, files=(tmp_path / "no.json",)))
    assert str(caught.value) == (
        f"task 'reviews': files: no file {tmp_path}/no.json; it is to be deployed beside the model"
    )


@pytest.mark.parametrize("name", ["tokenizer.json", "model.onnx", "done.json"])
def test_two_files_of_one_name_beside_the_model_are_refused(
    name: str, reviews: Task, folder: Path, tmp_path: Path
) -> None:
    """Of two encoders' tokenizers one would be the other's."""
    (tmp_path / name).touch()
    with pytest.raises(TaskError) as caught:
        task_file.check_data(dataclasses.replace(reviews, files=(folder / "tokenizer.json", tmp_path / name)))
    assert str(caught.value) == (
        f"task 'reviews': files: {tmp_path}/{name}: another '{name}' lies beside the model; give it a name of its own"
    )


def test_splits_may_differ_in_a_dynamic_axis_alone(reviews: Task, folder: Path) -> None:
    longer = ArraySplit(TextEncoder.open(folder, tokens=12).encode(TEXTS), LABELS)
    task_file.check_data(dataclasses.replace(reviews, train=longer))
    with pytest.raises(
        DataError, match=r"'train' split: inputs are input_ids int64 \(12,\), .* \(12,\), those of the 'test'"
    ):
        task_file.check_data(dataclasses.replace(reviews, train=longer, dynamic_axes={}))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"ids": {1: "tokens"}}, "task 'reviews': dynamic_axes: input 'ids' is none of input_ids, attention_mask; {1: 'tokens'} is asked for"),
        ({"input_ids": {2: "tokens"}}, "task 'reviews': dynamic_axes: input 'input_ids' has the axes 1 to 1; {2: 'tokens'} is asked for"),
    ],
)  # fmt: skip
def test_axes_that_are_not_there_are_refused(axes: dict[str, dict[int, str]], message: str, reviews: Task) -> None:
    with pytest.raises(TaskError) as caught:
        dataclasses.replace(reviews, dynamic_axes=axes).input_specs()
    assert str(caught.value) == message
