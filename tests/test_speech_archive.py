"""Archives from anywhere: nothing in them is run, leads out of them or fills the memory."""

import io
import os
import pickle
import tarfile

import pytest
import torch
from nemo_files import config, saved, state, write_nemo

from intq.errors import IntqError
from intq.speech import archive, nemo
from intq.speech.checkpoint import load


class Code:
    """Runs when it is unpickled by a loader that runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_pickles_is_never_run(tmp_path):
    trap = tmp_path / "trap"
    for values in (saved({"encoder": Code(trap)}), pickle.dumps(Code(trap))):
        with pytest.raises(IntqError, match="holds objects besides tensors, which may be code and are never loaded"):
            load(write_nemo(tmp_path / "net.nemo", config(), values))
    unsafe = b"encoder: !!python/object/apply:os.mkdir [" + str(trap).encode() + b"]\n"
    with tarfile.open(tmp_path / "yaml.nemo", "w") as file:
        for name, content in ((nemo.CONFIG, unsafe), (nemo.WEIGHTS, saved(state(config())))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    with pytest.raises(IntqError, match="is not plain YAML"):
        load(tmp_path / "yaml.nemo")
    assert not trap.exists()


@pytest.mark.parametrize("name", ["../out.ckpt", "/etc/out.ckpt", "inside/../../out.ckpt", "..\\out.ckpt"])
def test_paths_that_lead_out_are_refused(tmp_path, name):
    path = write_nemo(tmp_path / "net.nemo", config(), **{})
    with tarfile.open(path, "a") as file:
        file.addfile(tarfile.TarInfo(name))
    with pytest.raises(IntqError, match="at the unsafe path"):
        load(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    path = write_nemo(tmp_path / "net.nemo", config())
    with tarfile.open(path, "a") as file:
        member = tarfile.TarInfo("model.bin")
        member.type, member.linkname = kind, "/etc/passwd"
        file.addfile(member)
    with pytest.raises(IntqError, match=r"holds 'model.bin', a link or a device"):
        load(path)


def test_absurd_sizes_and_damage(tmp_path, monkeypatch):
    path = write_nemo(tmp_path / "net.nemo", config())
    with monkeypatch.context() as patch:
        patch.setattr(archive, "LARGEST", 20000)
        with pytest.raises(IntqError, match="is absurdly large"):
            load(path)
        patch.setattr(archive, "LARGEST", 1 << 32)
        patch.setattr(archive, "MOST_MEMBERS", 1)
        with pytest.raises(IntqError, match="is absurdly large: expected at most 1 files"):
            load(path)
    anchors = "".join(f"a{i}: &a{i} [{', '.join(['x' if i == 0 else f'*a{i - 1}'] * 10)}]\n" for i in range(9))
    (tmp_path / "net.yaml").write_text(anchors + "labels: *a8\n")  # a thousand million names in 500 bytes
    torch.save(state(config()), tmp_path / "net.pt")
    monkeypatch.setattr(nemo, "MOST_SETTINGS", 20_000)
    with pytest.raises(IntqError, match="refers to itself, or to absurdly much"):
        load(tmp_path / "net.pt")
    with monkeypatch.context() as patch:
        patch.setattr(nemo, "LONGEST_CONFIG", 100)
        with pytest.raises(IntqError, match=r"bytes, expected at most 100"):
            load(path)
    for mode in ("w", "w:gz", "w:xz"):
        content = write_nemo(tmp_path / "whole.nemo", config(), mode=mode).read_bytes()
        for damaged in (
            content[: len(content) // 2],
            b"PK" + content[2:],
            content[:300] + b"\x77" * 300 + content[600:],
        ):
            path.write_bytes(damaged)
            with pytest.raises(IntqError):
                load(path)
    with tarfile.open(path, "w") as file:
        file.addfile(tarfile.TarInfo("module.yaml"))
    with pytest.raises(IntqError, match=r"lacks model_config\.yaml and model_weights\.ckpt, holds module\.yaml"):
        load(path)
    with tarfile.open(path, "w") as file:
        file.addfile(tarfile.TarInfo("./a"))
        file.addfile(tarfile.TarInfo("a"))
    with pytest.raises(IntqError, match="holds a twice"):
        load(path)
