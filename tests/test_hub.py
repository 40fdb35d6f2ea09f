"""SAEs to the Hugging Face hub and back through sae-lens; the hub is a folder, and `hub` is all that is not real."""

import inspect
import shutil
from pathlib import Path

import httpx
import pytest
import sae_lens
import torch
from huggingface_hub.utils import EntryNotFoundError, RepositoryNotFoundError
from sae_lens.loading import pretrained_sae_loaders as loaders

from toolkit.errors import UserError
from toolkit.sae import SAEConfig, fit_sae, load_sae, push

REPO = "someone/small"
SAID = httpx.Response(404, request=httpx.Request("GET", "https://hub"))


class Hub:
    """Repositories as folders, with as much of HfApi as sae-lens asks for."""

    def __init__(self, root):
        self.root, self.uploads = root, []

    def repo_info(self, repo):
        if not (self.root / repo).is_dir():
            raise RepositoryNotFoundError("no such repository", response=SAID)

    def create_repo(self, repo):
        (self.root / repo).mkdir(parents=True)

    def upload_folder(self, *, folder_path, path_in_repo, repo_id, allow_patterns, **_):
        there = self.root / repo_id / path_in_repo
        there.mkdir(parents=True, exist_ok=True)
        for file in Path(folder_path).iterdir():
            if file.name in allow_patterns:
                shutil.copy(file, there)
                self.uploads.append(f"{path_in_repo}/{file.name}")

    def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id, **_):
        (self.root / repo_id / path_in_repo).write_bytes(path_or_fileobj.read())

    def metadata(self, url):
        if not (self.root / url).exists():
            raise EntryNotFoundError("no such file")

    def download(self, repo_id, filename, **_):
        self.metadata(f"{repo_id}/{filename}")
        return str(self.root / repo_id / filename)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    found = Hub(tmp_path / "hub")
    uploader = inspect.getmodule(sae_lens.upload_saes_to_huggingface)
    for module, name, put in (
        (uploader, "HfApi", lambda: found),
        (uploader, "create_repo", found.create_repo),
        (uploader, "hf_hub_url", lambda repo_id, filename, revision: f"{repo_id}/{filename}"),
        (uploader, "get_hf_file_metadata", found.metadata),
        (loaders, "hf_hub_download", found.download),
    ):
        monkeypatch.setattr(module, name, put)
    return found


X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "batchtopk"])
def test_what_is_pushed_comes_back(architecture, hub, tmp_path):
    sae = fit_sae(X, SAEConfig(architecture=architecture, width=16, k=2, steps=30, batch=32))
    sae.save(tmp_path / "sae")
    source = push(tmp_path / "sae", REPO, name="layer_2")
    assert source == f"{REPO}:layer_2"
    assert sorted(hub.uploads) == ["layer_2/cfg.json", "layer_2/sae_weights.safetensors"]
    assert "layer_2" in (hub.root / REPO / "README.md").read_text()
    again = load_sae(source)
    assert torch.allclose(again(X[None]), sae(X[None]), atol=1e-5)
    assert not torch.allclose(again(X[None])[0], X, atol=1e-1)


def test_a_second_sae_goes_beside_the_first(hub, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        fit_sae(X, SAEConfig(width=16, k=2, steps=5, batch=32), seed=seed).save(tmp_path / name)
        push(tmp_path / name, REPO, name=name)
    first, second = (load_sae(f"{REPO}:{name}").W_dec for name in ("a", "b"))
    assert not torch.allclose(first, second)


def test_mistakes_are_one_line_and_send_nothing(hub, tmp_path, monkeypatch):
    fit_sae(X, SAEConfig(width=16, k=2, steps=5, batch=32)).save(tmp_path / "sae")
    (tmp_path / "empty").mkdir()
    for folder, repo, said in (
        ("empty", REPO, "no SAE in .*empty: expected a folder that sae-lens reads"),
        ("none", REPO, "no SAE in .*none"),
        ("sae", "small", "cannot push to 'small': expected USER/REPO"),
        ("sae", "a/b/c", "cannot push to 'a/b/c'"),
        ("sae", "a/b:c", "cannot push to 'a/b:c'"),
    ):
        with pytest.raises(UserError, match=said):
            push(tmp_path / folder, repo)
    assert hub.uploads == []
    with pytest.raises(UserError, match=f"cannot read the SAE {REPO}:none: no such file"):
        load_sae(f"{REPO}:none")

    def refuse(repo):
        raise PermissionError("401 Client Error: you must log in\nand more")

    monkeypatch.setattr(hub, "repo_info", refuse)
    with pytest.raises(UserError, match=r"401 Client Error: you must log in$"):
        push(tmp_path / "sae", REPO)
