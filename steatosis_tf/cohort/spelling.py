"""One patient under two spellings."""

import re
import unicodedata


def spelling_key(patient_id: str) -> str:
    """What two spellings of one patient share: `P-07`, `p 7` and `P７` all give `p7`."""
    text = unicodedata.normalize("NFKC", patient_id).casefold().strip()
    text = re.sub(r"[\s_.\-]+", "-", text)
    # Between two numbers the sign counts: 1-11 is not 11-1.
    text = re.sub(r"(?<=[^\W\d])-(?=\d)|(?<=\d)-(?=[^\W\d])", "", text)
    return re.sub(r"\d+", lambda digits: str(int(digits[0])), text)
