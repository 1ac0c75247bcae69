"""The secret key and the pseudonyms made with it.

A pseudonym is the first 64 bits of HMAC-SHA256 (RFC 2104) under a key that never leaves the
hospital. Without the key nobody can try all patient numbers of a hospital until one fits, which
is what undoes a plain hash.
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from steatosis_tf.files import BEING_WRITTEN

KEY_PREFIX = "steatosis-key-1 "
#: Present in every folder that `ingest_dicom` writes; a key must never lie at or below it.
OUTPUT_MARK = "ingest.json"
NUM_PSEUDONYM_DIGITS = 16

_KEY_TEXT = re.compile(re.escape(KEY_PREFIX) + r"([0-9a-f]{64})\s*")


def create_key(path: str | Path) -> Path:
    """Write a new random 256-bit key, readable by its owner only (mode 0600).

    Args:
        path: file to create, outside every data folder. Keep a copy where patient lists are kept:
            without it no second export gets the same pseudonyms.

    Raises:
        ValueError: if the file exists already, its folder does not, or it would lie inside the
            output of an ingest.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError("Expected an existing folder for the key file. Make the folder first.")
    for folder in path.resolve().parents:
        if (folder / OUTPUT_MARK).is_file():
            raise ValueError(
                "Expected a key path outside every ingest output: a key beside the pseudonyms "
                "undoes them. Received: a path inside an output folder. Choose another folder."
            )
    # Written whole before it has its name: half a key would be in the way of the next call.
    handle, name = tempfile.mkstemp(prefix=f"{BEING_WRITTEN}{path.stem[:40]}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(f"{KEY_PREFIX}{secrets.token_hex(32)}\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o600)  # a umask of 0777 would have taken the owner's rights too
        _name_anew(name, path)
    except FileExistsError as error:
        raise ValueError(
            "Expected a path where no file is. Received: an existing file. A replaced key changes "
            "every patient_id; delete the old key by hand if that is meant."
        ) from error
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def _name_anew(name: str, path: Path) -> None:
    """Give a file its name unless something has it: a rename would replace that."""
    try:
        os.link(name, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links on this disk, as on most sticks
        if os.path.lexists(path):
            raise FileExistsError(path.name) from None
        os.rename(name, path)


def read_key(path: str | Path) -> bytes:
    """The 32 bytes of a key file made by `create_key`.

    Raises:
        ValueError: if the file is missing, readable by others than its owner, or not a key.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        text = path.read_text("ascii") if stat.S_ISREG(mode) else ""
    except UnicodeDecodeError:
        text = ""
    except OSError as error:
        raise ValueError(
            f"Expected a readable key file ({error.strerror}). Make one with `steatosis key FILE`, "
            "or give the key of the earlier export so that the pseudonyms agree."
        ) from error
    if os.name == "posix" and mode & 0o077:
        raise ValueError(
            "Expected a key file that only its owner can read. "
            f"Received: mode={stat.S_IMODE(mode):04o}. Run `chmod 600` on it."
        )
    match = _KEY_TEXT.fullmatch(text)
    if match is None:
        raise ValueError(
            "Expected a key file made by `steatosis key FILE`. Received: another kind of file, "
            "or a damaged key. Restore it from its copy."
        )
    return bytes.fromhex(match.group(1))


def pseudonym(key: bytes, kind: str, *values: str | bytes) -> str:
    """Keyed hash of one or more values.

    Args:
        key: 32 bytes of `read_key`.
        kind: what is hashed ("patient", "study", ...), so that equal values of different kinds
            give different pseudonyms.
        values: the parts; ("ab", "c") and ("a", "bc") differ.

    Returns:
        16 hexadecimal digits.
    """
    message = hmac.new(key, digestmod=hashlib.sha256)
    for value in (kind, *values):
        data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
        message.update(len(data).to_bytes(8, "big") + data)
    return message.hexdigest()[:NUM_PSEUDONYM_DIGITS]


def normal_patient_id(patient_id: str) -> str:
    """A PatientID without what typists and systems vary: case, blanks, full-width digits."""
    return "".join(unicodedata.normalize("NFKC", patient_id).casefold().split())


def normal_name(name: str) -> tuple[str, ...]:
    """The sorted words of a person name, without case, accents, separators and order.

    `DOE^JOHN`, `Doe^John ` and `John Doe` give the same words. Only the alphabetic group of a
    DICOM name (before the first `=`) counts, and of that family, given and middle names.
    """
    family_to_middle = "^".join(name.split("=")[0].split("^")[:3])
    decomposed = unicodedata.normalize("NFKD", family_to_middle)
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return tuple(sorted(re.findall(r"[^\W_]+", plain.casefold())))


# Letters that look like a Latin one, in lower case and of any of its cases: Cyrillic, then Greek.
_LOOK_ALIKES = str.maketrans(
    "авекмнорстухіјѕһԁԛԝαβεηικμνορτυχζ",
    "abekmhopctyxijshdqwabehikmnoptyxz",
)


def spelling_key(name: str) -> str:
    """What two spellings of one patient, or one site, share: `P-07`, `p 7` and `P７` all give `p7`.

    So do ids that differ by accents, by letters of another alphabet that look the same, by
    characters that are not seen (zero width, soft hyphen), and `7` and `7.0` of a spreadsheet.

    Example:
        >>> spelling_key("Р\u00ad-07"), spelling_key("7.0"), spelling_key("Ása 1")
        ('p7', '7', 'asa1')
    """
    text = unicodedata.normalize("NFKD", name).casefold()
    text = "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf", "Cc"))
    text = re.sub(r"^(\d+)[.,]0+$", r"\1", text.translate(_LOOK_ALIKES).strip())
    text = re.sub(r"[\s_.\-]+", "-", text)
    # Between two numbers the sign counts: 1-11 is not 11-1.
    text = re.sub(r"(?<=[^\W\d])-(?=\d)|(?<=\d)-(?=[^\W\d])", "", text)
    return re.sub(r"\d+", lambda digits: str(int(digits[0])), text)


def spelled_alike(names: Iterable[str]) -> list[list[str]]:
    """Names that share a `spelling_key`, two or more each, sorted.

    Example:
        >>> spelled_alike(["P-07", "p7", "P8"])
        [['P-07', 'p7']]
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(spelling_key(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]
