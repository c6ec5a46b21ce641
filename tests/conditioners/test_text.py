"""Captions, read by a transformer of ours or by an encoder of others."""

import copy
import shutil
import sqlite3

import pytest
import torch
import transformers

from ldmlab.conditioners.pretrained_text import PretrainedText
from ldmlab.conditioners.text import BYTES, Text
from ldmlab.errors import UserError
from ldmlab.settings import SettingError
from ldmlab.types import DataInfo, LatentInfo

DATA, LATENTS = DataInfo("pets", 16, "0", has_captions=True), LatentInfo(4, 3)


def text_of(**options):
    return Text(DATA, LATENTS, width=8, heads=2, **options)


def test_captions_are_bytes_after_a_start():
    text = text_of()
    ids, mask = text.tokenize(["ab", "é", ""])
    names = [[text.start, *map(BYTES.index, word)] for word in ("Ġab", "ĠÃ©")]
    assert ids[:2].tolist() == names
    assert ids[2].tolist() == [text.start, *[text.padding] * 3]
    assert mask.tolist() == [[True] * 4, [True] * 4, [True, False, False, False]]


CAPTIONS = ["a red circle above a blue square", "a blue ring", "red square, ababab abab", "aaaa aaaaaa aa"]


def prepared(**options):
    text = text_of(**options)
    text.prepare(lambda: iter([{"caption": CAPTIONS}, {"caption": CAPTIONS}]))
    return text


def test_frequent_words_become_one_token_and_others_stay_readable():
    text = prepared()
    ids, _ = text.tokenize(["a red circle", "Größe 大"])
    assert ids[0, :4].ge(len(BYTES)).all()
    assert ids[0, 4] == text.padding
    assert text({"caption": ["a red circle", "Größe 大"]}).tokens.isfinite().all()


def test_no_more_tokens_than_the_vocabulary():
    for vocabulary in (256, 257, 270, 2048):
        text = prepared(vocabulary=vocabulary)
        ids, mask = text.tokenize(CAPTIONS)
        assert ids[mask].max() == text.start == vocabulary
        assert text.merges.ge(0).all(1).sum() == min(vocabulary - 256, len(prepared().pairs.find(CAPTIONS * 2, 2048)))


def test_a_vocabulary_is_kept_with_the_weights():
    text = prepared()
    loaded = text_of()
    average = copy.deepcopy(loaded)
    assert loaded.tokenize(CAPTIONS)[0].shape != text.tokenize(CAPTIONS)[0].shape
    loaded.load_state_dict(text.state_dict())
    for reader in (loaded, average):
        assert torch.equal(reader.tokenize(CAPTIONS)[0], text.tokenize(CAPTIONS)[0])


def test_captions_give_the_same_vocabulary_every_time():
    assert torch.equal(prepared().merges, prepared().merges)


def test_what_is_too_long_is_cut_off():
    text = text_of(length=5, vocabulary=256).eval()
    ids, _ = text.tokenize(["abcdefgh"])
    assert ids.tolist() == [[text.start, *map(BYTES.index, "Ġabc")]]
    assert torch.equal(text({"caption": ["abcdefgh"]}).tokens, text({"caption": ["abcXYZ"]}).tokens)


def test_fewer_tokens_than_bytes_are_refused():
    with pytest.raises(SettingError, match="vocabulary: 100 is fewer"):
        text_of(vocabulary=100)


def test_the_order_of_words_is_heard():
    text = Text(DATA, LATENTS, width=16, heads=2).eval()
    one, other = (text({"caption": [caption]}).tokens for caption in ("cat above dog", "dog above cat"))
    assert not torch.allclose(one.mean(1), other.mean(1), atol=1e-4)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a small BERT, as `transformers` saves it."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "red", "above"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
    )
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=12).save_pretrained(folder)
    return str(folder)


def read(encoder, **options):
    return PretrainedText(DATA, LATENTS, encoder=encoder, width=8, **options).eval()


def test_the_states_are_those_of_the_encoder(encoder):
    conditioner = read(encoder)
    states, mask = conditioner.reader.read(["a cat", "red dog above a cat"], torch.device("cpu"))
    network = transformers.BertModel.from_pretrained(encoder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    with torch.inference_mode():
        wanted = network(**tokenizer("a cat", return_tensors="pt")).last_hidden_state[0]
    assert mask.sum(1).tolist() == [4, 7]
    torch.testing.assert_close(states[0, :4], wanted, atol=2e-3, rtol=2e-3)  # kept in half precision
    assert not states[0, 4:].any()


def test_a_caption_is_read_once(encoder, monkeypatch):
    conditioner = read(encoder)
    asked = []
    network = conditioner.reader.network
    monkeypatch.setattr(
        conditioner.reader, "network", lambda **inputs: asked.append(inputs["input_ids"].tolist()) or network(**inputs)
    )
    conditioner({"caption": ["a cat", "a cat", "a dog"]})
    conditioner({"caption": ["a dog", "a cat", "dog"]})
    assert len(asked) == 3


def test_states_depend_neither_on_the_captions_beside_nor_on_mixed_precision(encoder):
    device = torch.device("cpu")
    alone, _ = read(encoder).reader.read(["a cat"], device)
    beside, _ = read(encoder).reader.read(["red dog above a cat", "a cat"], device)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = read(encoder).reader.read(["a cat"], device)
    assert torch.equal(alone[0], beside[1, :4])
    assert torch.equal(alone, mixed)


def test_what_reading_costs_is_the_same_for_every_run(encoder, tmp_path):
    def batches():
        yield {"caption": ["a cat", "red dog"]}
        yield {"caption": ["a cat", "dog"]}

    first = read(encoder, cache=str(tmp_path)).prepare(batches)
    assert min(first) > 0
    assert read(encoder, cache=str(tmp_path)).prepare(batches) == pytest.approx(first)


def test_another_tokenizer_is_another_encoder(encoder, tmp_path):
    shutil.copytree(encoder, tmp_path / "other")
    for file in (tmp_path / "other").glob("*"):
        if file.suffix in (".json", ".txt"):
            file.write_text(file.read_text().replace("red", "rot"))
    assert read(str(tmp_path / "other")).reader.digest != read(encoder).reader.digest


def test_another_run_finds_what_was_read_on_the_disk(encoder, tmp_path, monkeypatch):
    first = read(encoder, cache=str(tmp_path))
    told = first({"caption": ["a cat", "red dog"]})
    second = read(encoder, cache=str(tmp_path))
    second.load_state_dict(first.state_dict())
    monkeypatch.setattr(second.reader, "network", None)  # is not asked
    again = second({"caption": ["a cat", "red dog"]})
    assert torch.equal(told.tokens, again.tokens)
    (file,) = tmp_path.iterdir()
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT count(*) FROM states").fetchone() == (2,)


def test_a_place_that_is_no_folder_ends_in_one_line(encoder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"text_pretrained\.cache: cannot use"):
        read(encoder, cache=str(tmp_path / "file"))


def test_the_encoder_is_neither_trained_nor_saved_nor_copied(encoder):
    conditioner = read(encoder)
    assert {name.split(".")[0] for name, _ in conditioner.named_parameters()} == {"project"}
    assert set(conditioner.state_dict()) == {
        "encoder_sha256",
        *(f"project.{n}" for n in ("0.weight", "0.bias", "1.weight", "1.bias")),
    }
    assert copy.deepcopy(conditioner).reader is conditioner.reader


def test_a_model_is_not_told_by_another_encoder(encoder, tmp_path):
    trained = read(encoder).state_dict()
    network = transformers.BertModel.from_pretrained(encoder)
    torch.nn.init.normal_(network.embeddings.word_embeddings.weight)
    network.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is not the encoder that this model was trained with"):
        read(str(tmp_path)).load_state_dict(trained)


def test_what_the_encoder_cannot_read_is_cut_off(encoder):
    states, _ = read(encoder).reader.read(["cat " * 30], torch.device("cpu"))
    assert states.shape[1] == 12


def test_an_encoder_that_is_not_there_ends_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"conditioner.text_pretrained.encoder: no such folder"):
        read(str(tmp_path / "nothing"))


@pytest.mark.slow
def test_minilm_from_its_package_tells_left_from_right():
    conditioner = PretrainedText(DATA, LATENTS, width=8)
    captions = ["a red square above a blue circle", "a blue circle above a red square"]
    states, mask = conditioner.reader.read(captions, torch.device("cpu"))
    assert states.shape == (2, 9, 384)
    assert mask.all()
    pooled = torch.nn.functional.normalize(states.mean(1), dim=-1)
    assert (pooled[0] @ pooled[1]).item() > 0.95  # what a pooled vector could say
    tokens = torch.nn.functional.normalize(states, dim=-1)
    assert (tokens[0] * tokens[1]).sum(-1).min().item() < 0.8


@pytest.mark.network
@pytest.mark.parametrize(("encoder", "width"), [("clip", 768), ("t5", 768)])
def test_encoders_on_the_hub(encoder, width):
    conditioner = PretrainedText(DATA, LATENTS, encoder=encoder, width=8)
    states, mask = conditioner.reader.read(["a cat", "a dog that barks"], torch.device("cpu"))
    assert states.shape[2] == width
    assert mask[0].sum() < mask[1].sum()
