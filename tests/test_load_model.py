"""Whole language models: equal to Hugging Face's, processed only where asked, found by name, folder and checkpoint."""

import os
import shutil
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from random_models import gpt2, llama, tokens
from safetensors.torch import save_file

from toolkit import model_files, weight_processing
from toolkit.errors import UserError
from toolkit.language import load_embedding, load_model, load_network
from toolkit.pretrain_folder import checkpoint_rows

PROCESSING = ("fold_layer_norm", "centre_writing_weights", "centre_unembed", "fold_value_biases")
FAMILIES = {"gpt2": gpt2, "llama": llama}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A GPT-2 and a Llama, neither with a tokenizer."""
    root = tmp_path_factory.mktemp("families")
    for name, make in FAMILIES.items():
        make().save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def training(tmp_path_factory, tiny_model):
    """A training folder: the model and its tokenizer, two checkpoints without one, a third embedding."""
    root = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    shutil.copytree(tiny_model, root)
    for step in (0, 20):
        kept = root / "checkpoints" / f"step_{step}"
        gpt2(seed=step).save_pretrained(kept)
    save_file(
        {"step_7": torch.full((40, 16), 7.0), "step_20": torch.full((40, 16), 20.0)}, root / "embeddings.safetensors"
    )
    return root


@torch.no_grad()
def logits_of(model, given):
    return model.bridge(given)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_weights_are_those_of_hugging_face(family, folders):
    model, original = load_model(str(folders / family)), FAMILIES[family]()
    with torch.no_grad():
        torch.testing.assert_close(logits_of(model, tokens()), original(tokens()).logits, atol=1e-4, rtol=0)
    held = {n.replace("._original_component", ""): w for n, w in model.bridge.original_model.state_dict().items()}
    for name, weight in original.named_parameters():
        assert torch.equal(held[name], weight), name
    assert (model.processing, model.revision, model.tokenizer) == ((), "", None)
    assert (model.d_model, model.context, model.vocabulary) == (16, 24, 40)


@pytest.mark.slow
@pytest.mark.real_model
def test_logits_of_a_pretrained_model_are_those_of_hugging_face(real_model):
    from transformers import AutoModelForCausalLM

    model = load_model(str(real_model))
    original = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32).eval()
    given = model.tokenizer(["The capital of France is Paris, and that of Italy is"], return_tensors="pt").input_ids
    folded = load_model(str(real_model), fold_layer_norm=True, centre_unembed=True)
    with torch.no_grad():
        expected = original(given).logits
        assert expected.log_softmax(-1).max() > -1, "the model predicts nothing here"
        torch.testing.assert_close(logits_of(model, given), expected, atol=1e-4, rtol=0)
        moved = logits_of(folded, given).log_softmax(-1) - expected.log_softmax(-1)
    assert moved.abs().max() < 1e-3
    assert (logits_of(folded, given) - expected).abs().max() > 1, "nothing was centred"


@pytest.mark.parametrize("options", [*[(one,) for one in PROCESSING], PROCESSING], ids="+".join)
def test_processed_weights_predict_the_same_and_are_recorded(options, folders):
    raw, processed = (
        load_model(str(folders / "gpt2")),
        load_model(str(folders / "gpt2"), **dict.fromkeys(options, True)),
    )
    assert processed.processing == options
    before, after = (logits_of(model, tokens()).log_softmax(-1) for model in (raw, processed))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
    assert processed.weights_hash != raw.weights_hash


def test_each_processing_does_what_it_says_and_nothing_is_done_unasked(folders):
    def state(**options):
        return load_model(str(folders / "gpt2"), **options).bridge.state_dict()

    raw = state()
    folded, value_free = state(fold_layer_norm=True), state(fold_value_biases=True)
    centred, unembed = state(centre_writing_weights=True), state(centre_unembed=True)
    assert (raw["blocks.0.ln1.weight"] - 1).abs().max() > 0.1
    assert torch.equal(folded["blocks.0.ln1.weight"], torch.ones(16))
    assert not folded["ln_final.bias"].any()
    assert raw["embed.weight"].mean(1).abs().max() > 0.01
    assert centred["embed.weight"].mean(1).abs().max() < 1e-6
    assert raw["unembed.weight"].mean(0).abs().max() > 0.01
    assert unembed["unembed.weight"].mean(0).abs().max() < 1e-6
    assert torch.equal(unembed["embed.weight"], raw["embed.weight"]), "tied weights were untied first"
    assert raw["blocks.1.attn.v.bias"].any()
    assert not value_free["blocks.1.attn.v.bias"].any()


def test_what_cannot_be_done_to_an_architecture_is_one_line(folders):
    with pytest.raises(UserError, match=r"centre_writing_weights: not for .*RMS: only layer norm removes the mean"):
        load_model(str(folders / "llama"), centre_writing_weights=True)
    assert load_model(str(folders / "llama"), fold_layer_norm=True).processing == ("fold_layer_norm",)


@pytest.mark.parametrize(
    ("name", "config", "adapter", "why"),
    [
        ("centre_writing_weights", {"normalization_type": "RMS", "final_rms": False}, {}, "only layer norm removes"),
        ("centre_writing_weights", {"normalization_type": "LN", "final_rms": True}, {}, "only layer norm removes"),
        ("centre_writing_weights", {}, {"supports_center_writing_weights": False}, "cannot centre"),
        ("fold_layer_norm", {"normalization_type": None}, {}, "not a layer norm or RMS norm"),
        ("fold_layer_norm", {}, {"supports_fold_ln": False}, "cannot fold"),
        ("centre_unembed", {"output_logits_soft_cap": 30.0}, {}, "capped"),
    ],
)
def test_other_architectures_are_refused_for_what_their_adapters_say(name, config, adapter, why):
    bridge = SimpleNamespace(cfg=SimpleNamespace(**config), adapter=SimpleNamespace(**adapter))
    with pytest.raises(UserError, match=f"{name}: not for it, .*{why}"):
        weight_processing.process_weights("it", bridge, (name,))


def test_processing_that_changes_predictions_is_refused(folders, monkeypatch):
    bridge = load_model(str(folders / "gpt2")).bridge

    def spoil(**_):
        bridge.original_model.lm_head.weight.data[3] += 0.5

    monkeypatch.setattr(type(bridge), "process_weights", lambda self, **options: spoil(**options))
    with pytest.raises(UserError, match=r"fold_layer_norm: not for it, whose log-probabilities it moves by"):
        weight_processing.process_weights("it", bridge, ("fold_layer_norm",))


def test_the_hash_changes_with_any_weight_and_with_nothing_else(folders, tmp_path):
    loaded = load_model(str(folders / "gpt2"))
    original = loaded.weights_hash
    logits_of(loaded, tokens())
    assert loaded.weights_hash == original, "running a model changes no weight"
    found = {original}
    model = gpt2()
    for weight in model.parameters():
        with torch.no_grad():
            weight.view(-1)[3] += 0.25
            model.save_pretrained(tmp_path)
            weight.view(-1)[3] -= 0.25
        found.add(load_model(str(tmp_path)).weights_hash)
    assert len(found) == 1 + len(list(model.parameters()))
    gpt2().save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).weights_hash == original


@pytest.mark.slow
def test_the_hash_is_the_same_in_another_process(folders, run_command):
    program = "import sys\nfrom toolkit.language import load_model\nprint(load_model(sys.argv[1]).weights_hash)"
    done = run_command(folders / "gpt2", program=program, environment={"PYTHONHASHSEED": "7"})
    assert done.out.strip() == load_model(str(folders / "gpt2")).weights_hash


def test_a_checkpoint_is_a_revision_or_a_folder_and_takes_the_tokenizer_above(training):
    first, later = load_model(str(training), revision="step_0"), load_model(str(training / "checkpoints" / "step_20"))
    for model, seed in ((first, 0), (later, 20)):
        assert torch.equal(model.bridge.W_E, gpt2(seed).transformer.wte.weight)
        whole = load_model(str(training)).tokenizer
        assert model.tokenizer("the cat").input_ids == whole("the cat").input_ids
    assert first.revision == "step_0"
    assert first.weights_hash != later.weights_hash
    with pytest.raises(
        UserError, match=r"unknown checkpoint of .* 'step_21': did you mean 'step_20'\? valid: step_0, step_20"
    ):
        load_model(str(training), revision="step_21")
    with pytest.raises(UserError, match="holds no checkpoints"):
        load_model(str(training / "checkpoints" / "step_0"), revision="step_0")


def test_embeddings_of_more_checkpoints_than_models_are_revisions_too(training):
    rows = {step: load_embedding(str(training), f"step_{step}").rows for step in (0, 7, 20)}
    assert torch.equal(rows[0], gpt2(0).transformer.wte.weight)
    assert [rows[7].unique().item(), rows[20].unique().item()] == [7, 20]
    with pytest.raises(UserError, match=r"unknown checkpoint .*valid: step_0, step_7, step_20"):
        load_embedding(str(training), "step_8")


def test_the_model_that_ships_is_the_default_of_every_loader(training, monkeypatch):
    monkeypatch.setattr(model_files, "SHIPPED", training.parent)
    assert load_model().name == "tiny-gpt2"
    assert load_model().weights_hash == load_model(str(training)).weights_hash
    assert torch.equal(load_embedding().rows, load_embedding(str(training)).rows)
    assert load_model(revision="step_20").weights_hash == load_model(str(training), revision="step_20").weights_hash
    assert load_network().tokenizer is not None


def test_offline_a_missing_name_is_one_line_that_says_what_works():
    with pytest.raises(UserError) as refused:
        load_model("nobody/no-such-model")
    message = str(refused.value)
    assert "\n" not in message
    assert "tiny-gpt2, which needs no network" in message
    assert "folder written by save_pretrained" in message


def test_a_revision_of_the_hub_reaches_the_cache_and_the_loader(monkeypatch):
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda name, file, revision: asked.append((name, revision)) or file
    )
    found = model_files.find_model("some/model", "step1000")
    assert asked == [("some/model", "step1000")]
    assert (found.name, found.revision, found.tokenizer) == ("some/model", "step1000", "some/model")
    seen = {}
    bridges = sys.modules["transformer_lens.model_bridge"].TransformerBridge

    def boot(name, **options):
        seen.update(options, name=name)
        raise OSError("no such revision")

    monkeypatch.setattr(bridges, "boot_transformers", boot)
    with pytest.raises(UserError, match="no such revision"):
        load_model("some/model", revision="step1000")
    assert (seen["name"], seen["revision"]) == ("some/model", "step1000")


def test_hooks_and_tokens_that_a_model_has_not_are_refused(folders):
    model = load_model(str(folders / "gpt2"))
    assert "blocks.1.hook_resid_post" in model.hook_names
    assert "blocks.1.hook_mlp_in" not in model.hook_names, "it is switched off"
    with pytest.raises(UserError, match=r"did you mean 'blocks.1.hook_resid_post'"):
        model.check_hook("blocks.1.hook_resid_psot")
    with pytest.raises(UserError, match=r"25 tokens in a row, but .* reads 24"):
        model.check_tokens(tokens(1, 25))
    with pytest.raises(UserError, match="from 0 to 39"):
        model.check_tokens(torch.tensor([[3, 40]]))
    for wrong in (torch.tensor([3, 4]), torch.ones(1, 4)):
        with pytest.raises(UserError, match=r"expected \(batch, positions\) whole numbers"):
            model.check_tokens(wrong)
    with pytest.raises(UserError, match="no tokens"):
        model.check_tokens(torch.zeros(1, 0, dtype=torch.long))


def test_a_damaged_file_of_embeddings_is_one_line(training, tmp_path):
    folder = shutil.copytree(training, tmp_path / "m")
    os.truncate(folder / "embeddings.safetensors", 60)
    with pytest.raises(UserError, match="corrupt or truncated"):
        load_embedding(str(folder), "step_7")
    with pytest.raises(UserError, match="corrupt or truncated"):
        checkpoint_rows(folder)
