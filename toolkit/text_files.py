"""Text in files, compressed or not; refused in one line where it cannot be read."""

import gzip
import os
import zlib
from pathlib import Path

from toolkit.errors import UserError, require

CONLLU = (".conllu", ".conllu.gz")
"""How the name of a file in CoNLL-U format ends."""

TEXT = (".txt", ".txt.gz")
"""How the name of a text file ends."""


def decode(path: str | Path, what: str = "text file") -> str:
    """The characters of a UTF-8 file, unpacked if its name ends in .gz; a byte order mark is left out.

    Raises:
        UserError: the file is missing, damaged, or not UTF-8.
    """
    path = Path(path)
    require(path.is_file(), f"no {what} at {path}: expected a file, plain or compressed (.gz)")
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} as text: {error}") from error


def files_in(folder: Path, endings: tuple[str, ...]) -> list[str]:
    """Paths in a folder, sub-folders too, of the files whose names end so; sorted, relative, without hidden ones.

    Raises:
        UserError: there is none.
    """
    paths = [Path(root, name).relative_to(folder) for root, _, names in os.walk(folder) for name in names]
    seen = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
    kept = sorted(name for name in seen if name.endswith(endings))
    require(bool(kept), f"no text in {folder}: expected files that end in {', '.join(endings)}")
    return kept
