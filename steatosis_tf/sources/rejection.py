"""Why a file, frame or row does not enter the study: a code for programs, a sentence for people.

One registry for `ingest`, `manifest` and the data-leakage check. The sentences about DICOM files
have numbers as the only inserts: a library's own message may quote the value it stumbled over (a
name, a UID), so none of them is ever passed on there.
"""

from steatosis_tf.grades import GRADES

# The kind, under which a report counts, ends at the bar, which is not shown; "//" parts it from a
# sentence that does not begin with it.
_TEXTS = {
    # the file of an export
    "unreadable_file": "unreadable file|; check its permissions and the disk",
    "link_to_folder": "a link to a folder is not followed|; give the folder itself as source",
    "not_a_regular_file": "not a regular file| (device, pipe or socket)",
    "too_large": "larger than 2 GiB|; split the clip before export",
    "empty_file": "empty file| (0 bytes); export it again",
    "path_traversal": "archive member whose name points outside the archive|; not opened",
    "link_in_archive": "a link inside an archive is not followed",
    "encrypted_member": "password-protected archive member|; unpack it yourself first",
    "bad_member": "damaged or unsupported archive member|; pack the archive again",
    "nested_archive": "an archive, not a DICOM file|; unpack it and give it as its own source",
    "looks_encrypted": "no DICOM marker and random bytes|: looks encrypted or packed",
    "no_marker": "not a DICOM file| (the DICM marker is missing)",
    "damaged_header": "damaged DICOM header|: truncated, encrypted or overwritten; export it again",
    "no_transfer_syntax": "damaged DICOM header|: the transfer syntax is missing",
    "deflated": "deflated file that unpacks to over {limit} MiB|; export it again uncompressed",
    "directory": "DICOMDIR index|, not an image",
    # the object
    "not_ultrasound": "not an ultrasound image| (neither modality US nor an ultrasound class)",
    "other_class": "ultrasound of another class|, such as a secondary capture: no report names it",
    "volume": "3-D ultrasound volume|; only 2-D frames and clips are read",
    "no_image": "ultrasound object without an image| (report, measurements or header only)",
    "own_answer": "an answer that steatosis_tf made|, not an image",
    "no_uid": "no valid UID of class, instance, series or study|: an answer could not refer to it",
    "no_patient": "neither PatientID nor name and birth date|: patient unknown, splits could leak",
    "damaged_image_header": "rows, columns, frames or bits are missing or impossible",
    "bit_depth": "expected 8 or 16 bits per sample|. Received: bits_allocated={bits}",
    "photometric": "photometric interpretation is not one of grey, RGB, YBR or palette",
    "codec": (
        "compressed by a method that is not read| ({codec}); export it uncompressed, or as JPEG of "
        "8 bits, JPEG-LS, JPEG 2000 or RLE"
    ),
    "contested_id": (
        "one PatientID with two issuers, birth dates or names without a common word|: these may be "
        "two people; give each an id of their own in the source, or one person one name"
    ),
    "burned_in": "marked as having burned-in annotation|; allow it only after looking at it",
    "copy": "copy of another file| (same SOPInstanceUID, same pixels), of which the first is used",
    "cut_copy": "truncated copy of another file| (same SOPInstanceUID), which is used",
    "uid_conflict": "one SOPInstanceUID on files with different content|; none of them is used",
    # its picture
    "colour_doppler": "colour Doppler region",
    "m_mode": "M-mode region",
    "spectral_doppler": "spectral Doppler region",
    "split_screen": "split screen|: {count} separate 2-D pictures",
    "two_pictures": "split screen|: two pictures side by side; export each as a frame of its own",
    "light_ground": (
        "light ground around the sector|: inverted, printed or a report; export the picture itself"
    ),
    "inverted": "inverted picture|: echoes are dark on light; export it as the scanner shows it",
    "no_tissue_region": "its region list holds no 2-D tissue region",
    "small_region": "2-D region too small//2-D region smaller than {low} px",
    "image_type_doppler": "image type says Doppler, M-mode, 3-D or tissue characterisation",
    "no_sector": "no ultrasound region stated and no sector found|: nothing can be blanked safely",
    "doubtful_sector": "no ultrasound region stated, doubtful sector found|: it may hold text",
    "colour_pixels": "coloured pixels inside the sector: Doppler, elastography or coloured marks",
    "truncated": "truncated|: the pixel data end too early; export it again",
    "missing_frame": (
        "truncated|: frames from this one on lie beyond the end of the pixel data ({count} in all)"
    ),
    "broken_frame": "broken frame|: it cannot be decoded",
    "colour_space": (
        "other colours than the header says|: black would be green or blue; export it again as RGB"
    ),
    "flat_frame": "empty frame|: one value all over the region",
    # an image file
    "unreadable_frame": "missing or unreadable file| ({why})",
    "empty_frame_file": "empty file| (0 bytes)",
    "cut_png": "truncated PNG|: the closing IEND chunk is missing; copy the file again",
    "damaged_jpeg": "damaged or truncated JPEG|: {why}; copy the file again",
    "no_picture": "not a readable image|: damaged, or no PNG, JPEG, BMP or TIFF",
    "image_size": (
        "picture too small or too large//expected sides from {low} to {high} px. Received: {size}"
    ),
    "not_8_bit": (
        "expected 8-bit pixels|. Received: {received}. Convert with the window your radiologists "
        "read with, or ingest the DICOM original"
    ),
    "channels": "expected 1, 3 or 4 channels|. Received: channels={count}",
    # a row of a label table
    "damaged_row": (
        "damaged row of the label table//more cells than the header has; put quotes around cells "
        "that hold the separator"
    ),
    "empty_path": "empty path",
    "empty_patient": "empty patient_id",
    "shortened_patient": (
        "patient_id shortened by a spreadsheet//patient_id {patient_id!r} was shortened by a "
        "spreadsheet, so that patients read alike: format that column as text, export it again"
    ),
    "unknown_grade": f"unknown grade| {{grade!r}}, expected one of {', '.join(GRADES)}",
    "fat_percent": (
        "fat_percent is not a number from 0 to 100//"
        "fat_percent {fat!r} is not a number from 0 to 100"
    ),
    "bad_box": "roi box is no four whole numbers of px|. Received: {box}",
    "grade_and_fat": (
        "grade does not agree with fat_percent//"
        "grade {grade} does not agree with fat_percent {fat}, which is {other}"
    ),
    "two_grades": "one patient with two grades|: {both}",
    "two_fats": "one patient with two fat percentages|: {both}",
    "duplicate_path": "duplicate path|, first at row {first}",
    "contested_path": (
        "duplicate path under several patients//duplicate path under {count} patients"
    ),
    # a frame that a repair took out
    "copied_frame": "copy of another patient's frame//copy of frame_id={kept}",
    "contested_copy": "the same pixels with two grades",
    # a frame of a manifest
    "other_pixels": "other pixels than when the manifest was made",
    "no_roi": "no region of interest",
}

#: Sentence of each code, with its inserts in braces.
REASONS = {code: text.split("//")[-1].replace("|", "") for code, text in _TEXTS.items()}
#: What a report counts under; two codes may share one.
KINDS = {code: text.split("//")[0].split("|")[0] for code, text in _TEXTS.items()}


class Rejection(ValueError):
    """A file, frame or row is left out.

    A type of its own because decoders raise ValueError too, with texts that may quote a header.

    Args:
        code: key of `REASONS`.
        inserts: of its sentence.

    Example:
        >>> str(Rejection("image_size", low=32, high=8192, size="height=8 width=9"))[:36]
        'expected sides from 32 to 8192 px. R'
    """

    def __init__(self, code: str, **inserts: object):
        self.code = code
        super().__init__(REASONS[code].format(**inserts))
