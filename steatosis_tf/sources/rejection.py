"""Why a file or frame of a hospital export does not enter the study.

Every text is fixed here, with numbers as the only inserts. A library's own message may quote the
value it stumbled over (a name, a UID), so none of them is ever passed on.
"""

REASONS = {
    # the file
    "unreadable_file": "unreadable file; check its permissions and the disk",
    "link_to_folder": "a link to a folder is not followed; give the folder itself as source",
    "not_a_regular_file": "not a regular file (device, pipe or socket)",
    "too_large": "larger than 2 GiB; split the clip before export",
    "empty_file": "empty file (0 bytes); export it again",
    "path_traversal": "archive member whose name points outside the archive; not opened",
    "link_in_archive": "a link inside an archive is not followed",
    "encrypted_member": "password-protected archive member; unpack it yourself first",
    "bad_member": "damaged or unsupported archive member; pack the archive again",
    "nested_archive": "an archive, not a DICOM file; unpack it and give it as its own source",
    "looks_encrypted": "no DICOM marker and random bytes: looks encrypted or packed",
    "no_marker": "not a DICOM file (the DICM marker is missing)",
    "damaged_header": "damaged DICOM header: truncated, encrypted or overwritten; export it again",
    "no_transfer_syntax": "damaged DICOM header: the transfer syntax is missing",
    "deflated": "deflated transfer syntax is not supported; export it again uncompressed",
    "directory": "DICOMDIR index, not an image",
    # the object
    "not_ultrasound": "not an ultrasound image (neither modality US nor an ultrasound class)",
    "volume": "3-D ultrasound volume; only 2-D frames and clips are read",
    "no_image": "ultrasound object without an image (report, measurements or header only)",
    "no_patient": "neither PatientID nor name and birth date: patient unknown, splits could leak",
    "damaged_image_header": "rows, columns, frames or bits are missing or impossible",
    "image_size": "expected sides from {low} to {high} px. Received: height={rows} width={columns}",
    "bit_depth": "expected 8 or 16 bits per sample. Received: bits_allocated={bits}",
    "photometric": "photometric interpretation is not one of grey, RGB, YBR or palette",
    "codec": "compressed by a method that is not read; export it as JPEG, JPEG 2000 or plain",
    "burned_in": "marked as having burned-in annotation; allow it only after looking at it",
    "copy": "copy of another file (same SOPInstanceUID, same pixels), of which the first is used",
    "uid_conflict": "one SOPInstanceUID on files with different content; none of them is used",
    # the picture
    "colour_doppler": "colour Doppler region",
    "m_mode": "M-mode region",
    "spectral_doppler": "spectral Doppler region",
    "split_screen": "split screen: {count} separate 2-D pictures",
    "no_tissue_region": "its region list holds no 2-D tissue region",
    "small_region": "2-D region smaller than {low} px",
    "image_type_doppler": "image type says Doppler, M-mode, 3-D or tissue characterisation",
    "no_sector": "no ultrasound region stated and no sector found: nothing can be blanked safely",
    "doubtful_sector": "no ultrasound region stated, doubtful sector found: it may hold text",
    "colour_pixels": "colour Doppler pixels inside the region",
    "truncated": "truncated: the pixel data end too early; export it again",
    "missing_frame": "truncated: this frame lies beyond the end of the pixel data",
    "broken_frame": "broken frame: it cannot be decoded",
    "flat_frame": "empty frame: one value all over the region",
}


class Rejection(ValueError):
    """A file or frame is left out, for a reason that holds no personal data.

    A type of its own because decoders raise ValueError too, with texts that may quote a header.

    Args:
        code: key of `REASONS`.
        numbers: the inserts of that text.
    """

    def __init__(self, code: str, **numbers: int | float):
        self.code = code
        super().__init__(REASONS[code].format(**numbers))
