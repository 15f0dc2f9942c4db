"What lies in a folder, as hashes: two folders are equal where every byte of them is."
import hashlib
from pathlib import Path


def contents(place: Path) -> dict:
    "{path below `place`: hash} of a file, or of all that lies in a folder, hidden or not; of the rest what it is."
    every = [place, *sorted(place.rglob("*"))] if place.is_dir() else [place]
    return {path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file()
            else "folder" if path.is_dir() else "no file" for path in every}
